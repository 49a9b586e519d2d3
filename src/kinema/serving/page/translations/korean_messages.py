"""What the library says in English, in Korean: sentences by `Message.code`, and reasons by an error's code.

What is filled in has no known last sound, so no particle that depends on it follows.
"""

MESSAGES = {
    # Settings.
    "no_multiple_of_8": "{name}: {value} 값은 8의 배수가 아닙니다. {below}, {above} 가운데 하나를 넣으세요.",
    "out_of_range": "{name}: {value} 값은 범위를 벗어났습니다. {range} 넣을 수 있습니다.",
    "from_to": "{low}부터 {high}까지",
    "at_least": "{low} 이상만",
    "seed_wanted": "0부터 {high}까지, 무작위로 뽑으려면 {random} 값을",
    "not_usable": "{name}: {value!r} 값은 쓸 수 없습니다. {wanted}",
    "one_of_wanted": "{choices} 가운데 하나를 고르세요.",
    "text_wanted": "글자를 넣으세요.",
    "number_wanted": "숫자를 넣으세요.",
    "whole_number_wanted": "정수를 넣으세요.",
    "other_wanted": "다른 값을 넣으세요.",
    "too_long": "{name}: {length}자를 썼습니다. {longest}자까지만 읽습니다.",
    "empty_prompt": "문장이 비어 있습니다({value!r}). 사진에 무엇이 보여야 하는지 쓰세요.",
    "without_prompt": "{name}: {value!r} 값은 문장으로 사진을 그릴 때만 쓰입니다. 이 값을 지우거나 문장을 쓰세요.",
    "no_prompt": "{value!r} 값은 문장이 아닙니다. 사진에 무엇이 보여야 하는지 쓰세요.",
    "no_character": "{name}: 글자가 아닌 것이 들어 있습니다({text}). 새로 쓰세요.",
    "no_setting": "{name!r}: 그런 설정은 없습니다. 있는 설정은 {known}입니다.",
    "no_model": "모델을 고르지 않았습니다. 고를 수 있는 모델은 {known}입니다.",
    "not_offered": "{name}: 이 서버에는 {value!r} 모델이 없습니다. 쓸 수 있는 모델은 {offered}입니다. "
    "서버의 KINEMA_MODELS에 더 넣을 수 있습니다.",
    "nothing_given": "사진도 문장도 없습니다. 둘 가운데 하나를 주세요.",
    "too_much_work": "{width}×{height} 픽셀 × {frames}장 × {steps}단계는 {work:,.0f}백만으로, 한 번에 만들 수 있는 "
    "{most:,.0f}백만(KINEMA_MAX_WORK)을 넘습니다. 크기나 길이, 단계 수를 줄이세요.",
    # Cautions of settings.
    "untrained_motion": "{name}: {value} 값은 모델이 학습에서 본 가장 큰 값인 255보다 큽니다.",
    "untrained_fps": "{name}: {value} 값은 모델이 학습에서 본 5부터 30까지를 벗어납니다. "
    "빠르기만 바꾸려면 ‘{other}’ 설정을 쓰세요.",
    "untrained_length": "{frames}장은 {model} 모델이 학습한 {trained}장보다 많습니다.",
    "untrained_size": "{width}×{height} 크기는 {model} 모델이 학습한 {known} 크기와 다릅니다.",
    "either": "{one} 또는 {two}",
    "not_tuned": "{name}: {value} 값은 {model} 모델을 다듬을 때 쓴 값({tuned})과 다릅니다.",
    "no_effect": "‘{name}’: ‘{other}’ 값이 {value:g}일 때는 효과가 없습니다. 1보다 커야 효과가 있습니다.",
    "nothing_drawn": "{model} 모델은 이 문장에서 그릴 수 있는 것을 찾지 못해, 아무 장면이나 그립니다. "
    "장소, 사물, 시간, 날씨를 이 모델이 아는 영어 낱말({examples} 등)로 쓰거나 다른 이미지 모델을 고르세요.",
    "words_not_drawn": "{model} 모델이 그리지 못하는 낱말이 있습니다: {words}",
    "and_more": "{first} 외 {count}개",
    # Cautions of the still.
    "image_enlarged": "사진({w}×{h})을 {width}×{height} 크기로 {scale:.2g}배 키웁니다. "
    "더 큰 사진을 쓰면 더 선명합니다.",
    "image_cut": "자르면 사진({w}×{h})의 {kept:.0%}만 남습니다. ‘여백’으로 맞추면 모두 남습니다.",
    "image_animated": "움직이는 사진입니다. 첫 장면을 씁니다.",
    "exif_damaged": "사진의 EXIF 정보가 손상되어, 사진이 옆으로 누워 있을 수 있습니다.",
    "colours_damaged": "사진의 색 프로파일이 손상되어 쓰지 않았습니다.",
    # What is wrong with a still.
    "image_empty": "파일이 비어 있습니다. 사진을 다시 받으세요.",
    "image_too_heavy": "사진이 {megabytes:.0f} MB입니다. {most} MB까지만 읽습니다. 사진을 줄이세요.",
    "image_far_too_wide": "사진이 {most}메가픽셀보다 훨씬 큽니다. 사진을 줄이세요.",
    "image_too_wide": "사진이 {width}×{height}, {megapixels:.1f}메가픽셀입니다. {most}메가픽셀까지만 읽습니다. "
    "사진을 줄이세요.",
    "image_too_small": "사진이 {width}×{height} 픽셀입니다. {least}×{least} 픽셀은 되어야 합니다. 더 큰 사진을 주세요.",
    "image_damaged": "사진이 손상되었거나 끝이 잘렸습니다. 사진을 다시 받거나 PNG로 새로 저장하세요.",
    "image_too_complex": "사진에 {parts} {most}개가 넘게 들어 있어 푸는 데 너무 오래 걸릴 수 있습니다. "
    "PNG로 새로 저장해서 쓰세요.",
    "jpeg_scans": "JPEG 스캔이",
    "jpeg_segments": "JPEG 세그먼트가",
    "png_chunks": "PNG 청크가",
    "image_out_of_memory": "사진을 푸는 데 메모리가 모자랍니다. 사진을 줄이세요.",
    "image_too_slow": "사진을 푸는 데 {seconds}초가 넘게 걸립니다. 사진을 줄이거나 PNG로 새로 저장해서 쓰세요.",
    "image_undecodable": "이 사진은 여기서 풀 수 없습니다. PNG로 새로 저장하거나 사진을 줄이세요.",
    "image_unknown": "알 수 없는 파일입니다. JPEG, PNG, WebP 사진을 주세요.",
    "image_of_another_kind": "이 파일은 {seems} 같습니다. {remedy} (JPEG, PNG, WebP를 읽습니다)",
    "a_gif": "GIF 그림",
    "a_pdf": "PDF 문서",
    "a_bmp": "BMP 그림",
    "a_tiff": "TIFF나 카메라 RAW 사진",
    "a_psd": "포토샵 문서",
    "a_jpeg_xl": "JPEG XL 그림",
    "a_jpeg_2000": "JPEG 2000 그림",
    "an_icon": "아이콘",
    "a_zip": "ZIP 압축 파일이나 오피스 문서",
    "a_video": "영상",
    "an_avif": "AVIF 그림",
    "a_heic": "HEIC 사진",
    "a_web_page": "웹 페이지",
    "an_svg": "SVG 그림",
    "save_as_png": "PNG로 저장해서 쓰세요.",
    "save_as_png_or_jpeg": "PNG나 JPEG로 저장해서 쓰세요.",
    "save_a_frame": "한 장면을 PNG로 저장해서 쓰세요.",
    "export_as_png": "PNG로 내보내서 쓰세요.",
    "export_as_jpeg": "JPEG로 내보내서 쓰세요.",
    "export_the_page": "쪽을 PNG로 내보내서 쓰세요.",
    "take_it_out": "안에 든 사진을 꺼내서 쓰세요.",
    "give_its_address": "사진 자체를 저장해서 쓰세요.",
    # The queue and the disk.
    "pins_used_up": "하루에 영상을 {most:.0f}개까지만 고정할 수 있습니다. {seconds:.0f}초 뒤에 다시 시도하세요.",
    "drafts_used_up": "하루에 사진을 {most:.0f} MB까지만 올릴 수 있습니다. {seconds:.0f}초 뒤에 다시 시도하세요.",
    "server_busy": "서버가 같은 요청을 한꺼번에 {count}개까지만 처리합니다. 몇 초 뒤에 다시 시도하세요.",
    "bodies_waiting": "서버가 받아 둘 수 있는 업로드가 가득 찼습니다(모두 {most:.0f} MB, 한 사용자는 그 절반까지). "
    "몇 초 뒤에 다시 시도하세요.",
    "little_room_for_bodies": "서버의 임시 파일 폴더(TMPDIR)에 {free:.1f} GB가 남았고, {reserve:g} GB는 비워 두어야 "
    "합니다(KINEMA_MIN_FREE_GB). 자리를 만들거나 TMPDIR을 더 큰 디스크의 폴더로 정하세요.",
    "queue_full": "{most}개가 기다리고 있어 더 받을 수 없습니다(KINEMA_QUEUE_SIZE). {wait:.0f}초 뒤에 다시 시도하세요.",
    "server_ending": "서버가 종료되는 중입니다. 다시 시작된 뒤 시도하세요.",
    "server_ending_job": "서버가 종료되는 중입니다. {job} 작업은 서버가 다시 시작되면 계속되니 그때 확인하세요.",
    "server_starting": "서버가 시작되는 중입니다. 잠시 뒤 다시 시도하세요.",
    "queue_closing": "서버가 끝나는 중입니다. 서버가 돌아오면 다시 시도하세요.",
    "little_room": "{folder}: 디스크에 {free:.1f} GB가 남았고, {reserve:g} GB는 비워 두어야 합니다"
    "(KINEMA_MIN_FREE_GB). 영상을 삭제하거나 자리를 만드세요.",
    "disk_full": "디스크가 가득 찼습니다. {folder} 폴더에 {file} 파일을 쓸 수 없습니다. "
    "영상을 삭제하거나 자리를 만드세요.",
    "no_folder": "서버의 데이터 폴더를 쓸 수 없습니다: {reason}.",
    "runner_lock_lost": "대기열의 데이터베이스와 연결이 끊겼습니다. 작업은 다시 연결될 때까지 기다립니다.",
    "runs_elsewhere": "이 서버의 데이터베이스에 있는 작업은 데이터 폴더가 다른 서버가 처리합니다. "
    "그 서버에 요청을 보내거나, 이 서버를 같은 데이터 폴더(KINEMA_DATA_DIR)로 시작하세요.",
    "no_database": "대기열의 데이터베이스가 답하지 않습니다. 잠시 뒤 다시 시도하세요.",
    "database_full": "대기열 데이터베이스의 디스크가 가득 찼습니다. 영상을 삭제하거나 자리를 만드세요.",
    "database_gone": "서버가 도는 동안 대기열의 데이터베이스가 없어지거나 바뀌었습니다. 제자리에 되돌려 놓거나, "
    "서버를 멈추고 백업에서 복구하세요.",
    "database_damaged": "대기열의 데이터베이스가 손상되어({reason}) 작업을 저장할 수 없습니다. 서버를 멈추고 백업에서 "
    "복구하세요.",
    "data_folder": "데이터 폴더",
    "in_the_log": "이유는 서버 로그에 있습니다.",
    "not_kept": "데이터베이스에 담을 수 없는 값이 있습니다. 문장과 설정을 새로 쓰세요.",
}

# Why a request is refused, or why a job failed, where no sentence of the above says it.
REASONS = {
    "kinema_error": "서버에서 문제가 생겼습니다.",
    "invalid_request": "쓸 수 없는 설정이 있습니다. 설정을 바꿔 보세요.",
    "request_too_large": "보낸 것이 너무 큽니다. 더 작은 사진을 주세요.",
    "invalid_image": "쓸 수 없는 사진입니다. 다른 사진을 주세요.",
    "weights_error": "모델을 쓸 수 없습니다. 다른 모델을 고르세요.",
    "model_not_found": "모델을 찾을 수 없습니다. 다른 모델을 고르세요.",
    "model_gated": "이 모델은 라이선스에 동의하거나 로그인해야 받을 수 있습니다. 서버의 HF_TOKEN을 확인하거나 "
    "다른 모델을 고르세요.",
    "hub_unreachable": "모델을 받을 허브에 닿지 않습니다. 서버의 네트워크를 확인하거나 이미 받아 둔 모델을 고르세요.",
    "weights_missing": "모델의 파일이 빠져 있습니다. 모델을 다시 받거나 다른 모델을 고르세요.",
    "weights_damaged": "모델의 파일이 손상되었습니다. 모델을 다시 받거나 다른 모델을 고르세요.",
    "not_an_svd_model": "영상을 만드는 모델(SVD)이 아닙니다. 다른 모델을 고르세요.",
    "not_an_image_pipeline": "사진을 그릴 수 있는 모델이 아닙니다. 다른 그림 모델을 고르세요.",
    "insufficient_memory": "메모리가 모자랍니다. 크기나 길이, 함께 현상할 장수를 줄이거나 더 작은 모델을 고르세요.",
    "insufficient_disk": "디스크에 자리가 모자랍니다. 영상을 삭제하거나 자리를 만들고 다시 시도하세요.",
    "generation_failed": "모델의 계산이 어긋나 영상이나 사진이 되지 못했습니다. 다른 시드나 설정으로 해 보고, "
    "그래도 그러면 모델의 파일을 확인하세요.",
    "job_error": "대기열에서 문제가 생겼습니다. 다시 시도하세요.",
    "queue_full": "기다리는 영상이 너무 많습니다. 잠시 뒤 다시 시도하세요.",
    "queue_unavailable": "대기열을 쓸 수 없습니다. 잠시 뒤 다시 시도하세요.",
    "job_not_found": "그런 영상은 없습니다. 삭제되었거나 보관 기간이 지났습니다.",
    "job_unfinished": "아직 완성된 영상이 없습니다.",
    "allowance_used_up": "하루에 쓸 수 있는 만큼 다 썼습니다. 나중에 다시 시도하세요.",
    "server_busy": "서버가 바쁩니다. 몇 초 뒤에 다시 시도하세요.",
    "key_reused": "같은 요청 키가 다른 설정으로 이미 쓰였습니다. 새 키를 쓰세요.",
    "video_error": "영상 파일을 쓰거나 읽을 수 없습니다. 다시 시도하세요.",
    "recipe_error": "따를 수 있는 레시피가 없습니다.",
    # Of jobs alone.
    "cancelled": "취소했습니다.",
    "worker_died": "만들던 프로세스가 거듭 끝나 버렸습니다. 메모리가 모자랄 때 흔히 그렇습니다. "
    "크기나 길이를 줄여 다시 만들어 보세요.",
    "worker_hung": "만들던 프로세스가 너무 오래 멈춰 있었습니다(KINEMA_STEP_TIMEOUT). "
    "크기나 길이를 줄여 다시 만들어 보세요.",
    "interrupted": "만드는 동안 서버가 거듭 끝났거나 다른 서버로 바뀌었습니다. 다시 만들어 보세요.",
    "internal_error": "프로그램에 결함이 있습니다. 다시 해도 그러면 서버의 기록을 확인하고 알려 주세요.",
}
