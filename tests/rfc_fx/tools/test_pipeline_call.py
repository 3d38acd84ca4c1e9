"""The call of a pipeline from options: values by the signature, and everything that is refused before weights are loaded."""

import command
import numpy as np
import pipeline_folders
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.cli import app
from rfc_fx.tools.load import LoadError
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.folder import PipelineFolder, pipeline_folder
from rfc_fx.tools.pipeline.media import media_of
from rfc_fx.tools.pipeline.values import parse_value

pytestmark = pytest.mark.usefixtures("captured_once")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A folder without weights: nothing here loads them."""
    folder = pipeline_folders.flux(tmp_path_factory.mktemp("models") / "flux", "FluxImg2ImgPipeline")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.new("RGBA", (16, 16), "red").save(path)
    return path


def call_of(folder, *assignments: str, **options):
    return pipeline_call(pipeline_folder(str(folder)), CallOptions(assignments=assignments, **{"prompts": ["a cat"], **options}))


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("3", float, 3),
        ("4.5", float | None, 4.5),
        ("none", float | None, None),
        ("True", bool, True),
        ("[0.9,0.5]", list[float] | None, [0.9, 0.5]),
        ("[1, 2]", tuple[int, int], [1, 2]),
        ("[a cat,a dog]", str | list[str], ["a cat", "a dog"]),
        ("7", str | None, "7"),
        ("7", str | int, 7),
        ('{"scale": 0.5}', dict | None, {"scale": 0.5}),
        ("a = b", str, "a = b"),
    ],
)
def test_a_value_has_the_type_of_its_parameter(text, annotation, value):
    parsed = parse_value("--call x", "x", text, annotation)
    assert parsed == value
    assert type(parsed) is type(value)


def test_pictures_masks_animations_and_tensors_are_read_from_files(picture, tmp_path):
    kind = Image.Image | None
    assert parse_value("--image", "image", str(picture), kind).mode == "RGB"
    assert parse_value("--call mask_image", "mask_image", str(picture), kind).mode == "L"
    assert len(parse_value("--call images", "images", f"[{picture}, {picture}]", kind)) == 2
    Image.new("L", (4, 4)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
    assert [frame.mode for frame in parse_value("--call video", "video", str(tmp_path / "a.gif"), list[Image.Image])] == ["RGB"] * 2
    embeds = torch.randn(1, 5, 32)
    save_file({"prompt_embeds": embeds}, tmp_path / "e.safetensors")
    torch.save(embeds, tmp_path / "e.pt")
    np.save(tmp_path / "e.npy", embeds.numpy())
    for name in ("e.safetensors", "e.pt", "e.npy"):
        assert torch.equal(parse_value("--call", "prompt_embeds", str(tmp_path / name), torch.Tensor | None), embeds)


def test_options_become_arguments_of_the_call(flux, picture):
    call = call_of(flux, "strength=0.5", negative_prompt="rain", width=32, height=16, cfg=3.0, images=[picture])
    assert call.arguments["image"].size == (16, 16)
    own = {"strength": 0.5, "negative_prompt": "rain", "width": 32, "height": 16, "guidance_scale": 3.0}
    assert own.items() <= call.arguments.items()
    assert (call.steps, call.groups) == (28, ["a cat"])
    given = call.keywords({"prompt": "a cat"}, 1, 7, 4)
    assert given["generator"].initial_seed() == 7
    assert (given["num_inference_steps"], given["output_type"], given["prompt"]) == (4, "np", "a cat")


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("strenght=1", "FluxImg2ImgPipeline has no such argument; the nearest names: strength"),
        ("strength", "expected name=value"),
        ("strength=strong", "--call strength: expected float, got strong"),
        ("strength=nan", "numbers must be finite, got nan"),
        ("sigmas=[1,NaN]", "numbers must be finite"),
        ("height=1.5", "--call height: expected int, got 1.5"),
        ("height=true", "--call height: expected int, got true"),
        ("height=99999999999999999999999", "expected an integer below 2^63"),
        ("image=/no/cat.png", "/no/cat.png: no such file"),
        ("image=pyproject.toml", "expected a picture that can be read"),
        ("prompt_embeds=/no/e.pt", "/no/e.pt: no such file"),
        ("num_inference_steps=3", "is set by --steps"),
        ("generator=1", "is set by --seed"),
        ("num_images_per_prompt=2", "is set by --seeds"),
        ("width=8", "another option says it already"),
    ],
)
def test_an_assignment_that_cannot_be_is_one_line(flux, assignment, text):
    with pytest.raises(OptionError) as error:
        call_of(flux, assignment, width=8)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--prompt", "a", "--frames", 3], "--frames: FluxImg2ImgPipeline does not take num_frames; it takes"),
        (["--prompt", "a", "--image", "/no.png"], "--image /no.png: no such file"),
        (["--prompt", "a", "--classes", 3], "takes prompts"),
        ([], "takes prompts; pass --prompt TEXT"),
        (["--prompt", "a", "--nfc", 99], "--nfc must be from 1 to 28, the steps of a generation, got 99"),
        (["--prompt", "a", "--preset", "flux.1-dev"], "--preset: log-snr has no published settings"),
        (["--prompt", "a", "--cfg", "inf"], "--cfg must be a finite number, got inf"),
        (["--prompt", "a", "--device", "meta"], "--device meta: not available here"),
        (["--prompt", "a", "--seed", "12345678901234567890123"], "'--seed': Input should be less than or equal to"),
        (["--prompt", "a", "--seeds", "99999999999999"], "'--seeds': Input should be less than or equal to 10000"),
        (["--classes", "0-99999999999999"], "--classes: at most 10000 classes"),
        (["--prompt", "a", "--width", 0], "'--width': Input should be"),
    ],
)
def test_a_bad_option_of_a_pipeline_is_one_line_before_anything_is_loaded(flux, tmp_path, options, text):
    out = tmp_path / "out"
    assert text in command.one_line_error(app, "generate", "--model", flux, "--out", out, *options)
    assert not out.exists()


def test_options_of_pipelines_are_refused_for_the_digits_model(tmp_path):
    for options in (["--width", 8], ["--call", "strength=1"], ["--negative-prompt", "rain"]):
        assert "for pipelines" in command.one_line_error(app, "generate", "--out", tmp_path, *options)


def test_what_a_class_needs_or_does_not_know_is_said(tmp_path):
    import diffusers

    needs = PipelineFolder(name="x", where=tmp_path, kind=diffusers.WanImageToVideoPipeline, parts=("transformer",))
    with pytest.raises(OptionError, match="WanImageToVideoPipeline needs image; pass --image"):
        pipeline_call(needs, CallOptions(prompts=["a cat"]))
    for index, text in (
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}', "its denoiser is unet"),
        ('{"_class_name": "Nothing"}', "'Nothing', expected a pipeline of diffusers"),
    ):
        (tmp_path / "model_index.json").write_text(index)
        with pytest.raises(LoadError, match=text):
            pipeline_folder(str(tmp_path))


class Output:
    """An output object with one field."""

    def __init__(self, **fields):
        vars(self).update(fields)


def test_whatever_a_pipeline_returns_becomes_one_tensor():
    red = Image.new("RGB", (4, 2), "red")
    pixels = np.asarray(red) / 255
    first = torch.tensor([1.0, -1.0, -1.0])
    for output in (Output(images=[red]), Output(images=pixels[None]), Output(image=[red]), ([red],), Output(images=pixels)):
        samples = media_of(output, 1).samples
        assert samples.shape == (1, 3, 2, 4)
        assert torch.equal(samples[0, :, 0, 0], first)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    frames = [[red] * 5, pixels[None].repeat(5, 0), tensor[None].repeat(5, 1, 1, 1)]
    for value in (*frames, *([each] for each in frames), pixels[None].repeat(5, 0)[None]):
        samples = media_of(Output(frames=value), 1).samples
        assert samples.shape == (1, 5, 3, 2, 4)
        assert torch.equal(samples[0, 0, :, 0, 0], first)
    for value in (torch.zeros(2, 8), torch.zeros(1, 2, 8), np.zeros((1, 2, 8)), [np.zeros((2, 8))]):
        assert media_of(Output(audios=value), len(value)).samples.shape[-1] == 8
    with_sound = media_of(Output(frames=pixels[None].repeat(5, 0)[None], audio=torch.zeros(1, 2, 8)), 1)
    assert with_sound.samples.dim() == 5
    assert with_sound.sound.shape == (1, 2, 8)
    assert media_of(Output(images=[red, red]), 1).samples.shape == (1, 3, 2, 8)  # side by side
    with pytest.raises(LoadError, match="hold neither pictures nor frames nor sound"):
        media_of(Output(images=["text"]), 1)
