import pytest
from pydantic import ValidationError

from kinema.errors import InvalidRequest
from kinema.settings import SECRETS, Settings, read_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "DEVICE", "DTYPE"):
        monkeypatch.delenv(f"KINEMA_{name}", raising=False)


def test_every_setting_has_a_default():
    settings = read_settings()
    assert (settings.model, settings.device, settings.dtype) == (None, "auto", "auto")


def test_arguments_override_environment_and_environment_overrides_file(tmp_path, monkeypatch):
    (tmp_path / "kinema.toml").write_text('model = "svd"\ndevice = "cpu"\ndtype = "float32"\n')
    monkeypatch.setenv("KINEMA_DEVICE", "cuda:1")
    monkeypatch.setenv("KINEMA_DTYPE", "float16")
    settings = read_settings(dtype="bfloat16", device=None)
    assert (settings.model, settings.device, settings.dtype) == ("svd", "cuda:1", "bfloat16")


def test_settings_are_read_on_each_call_and_immutable(monkeypatch):
    before = read_settings()
    monkeypatch.setenv("KINEMA_MODEL", "svd-xt")
    assert (before.model, read_settings().model) == (None, "svd-xt")
    with pytest.raises(ValidationError):
        before.model = "svd"


def test_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("KINEMA_DEVICE", "")
    assert read_settings().device == "auto"


@pytest.mark.parametrize(
    ("variable", "value"), [("KINEMA_DEVICE", "gpu"), ("KINEMA_DEVICE", "cuda:x"), ("KINEMA_DTYPE", "int8")]
)
def test_invalid_variable_is_rejected_with_value_and_expected(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidRequest, match=f"{variable} '{value}' is invalid; expected .*(cuda|float16)") as error:
        read_settings()
    assert error.value.param == variable.removeprefix("KINEMA_").lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dtype = "int8"', "dtype 'int8' in kinema.toml is invalid"),
        ('modle = "svd"', "unknown setting modle in kinema.toml; expected one of model, device, dtype"),
        ("model = ", "cannot read kinema.toml"),
    ],
)
def test_invalid_file_is_rejected_with_reason(tmp_path, text, message):
    (tmp_path / "kinema.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_settings()


@pytest.mark.parametrize("name", ["api_keys", "hosts", "cors_origins", "image_hosts", "models"])
def test_list_with_empty_string_is_rejected_and_empty_list_counts_as_unset(tmp_path, name):
    (tmp_path / "kinema.toml").write_text(f'{name} = [""]')
    with pytest.raises(InvalidRequest, match=f"{name}( '')? in kinema.toml is invalid"):
        read_settings()
    (tmp_path / "kinema.toml").write_text(f"{name} = []")
    assert getattr(read_settings(), name) == ()


def test_gpus_per_video_are_1_2_or_4(monkeypatch):
    assert [read_settings(gpus_per_video=text).gpus_per_video for text in ("1", "2", "4")] == [1, 2, 4]
    for value in ("3", "two", "0"):
        monkeypatch.setenv("KINEMA_GPUS_PER_VIDEO", value)
        with pytest.raises(InvalidRequest, match=f"KINEMA_GPUS_PER_VIDEO '?{value}'? is invalid; expected 1, 2 or 4"):
            read_settings()


def test_invalid_argument_is_rejected_by_its_name():
    with pytest.raises(InvalidRequest, match=r"^device 'tpu' is invalid"):
        read_settings(device="tpu")


def test_every_secret_is_listed():
    assert {name for name, field in Settings.model_fields.items() if "SecretStr" in repr(field.annotation)} == SECRETS


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_message_about_an_invalid_secret_does_not_show_it(tmp_path, name):
    (tmp_path / "kinema.toml").write_text(f"{name} = 1234567")
    with pytest.raises(InvalidRequest, match=f"{name} in kinema.toml is invalid") as error:
        read_settings()
    assert "1234567" not in str(error.value)
