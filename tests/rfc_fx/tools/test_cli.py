"""The command line: what `generate` leaves behind, what `inspect` prints, and every error on one line."""

import json
import shutil
from functools import partial
from pathlib import Path

import command
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from digits_models import digits_folder, tiny_dit
from PIL import Image

import rfc
from rfc_fx.tools import cli, named_methods, pictures, tiles
from rfc_fx.tools.compare import psnr

pytestmark = pytest.mark.usefixtures("captured_once")

FILES = ["images.png", "schedule.png", "summary.json"]
NAMES = f"--method must be one of {', '.join(named_methods.METHODS)}"
SHORT = ["--no-compile", "--rounds", "1", "--seeds", "1", "--steps", "8", "--classes", "3,7"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A random model in the layout of the digits model."""
    return digits_folder(tmp_path_factory.mktemp("models") / "digits")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A random class-conditional pipeline."""
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4, layers_per_block=1, sample_size=8)
    transformer = tiny_dit(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, num_layers=1)
    DiTPipeline(transformer, vae, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generated(digits, tmp_path_factory):
    """Output and folder of one run with all methods."""
    out = tmp_path_factory.mktemp("out") / "new" / "folder"
    methods = [part for name in ("fora", "taylorseer", "rfc", "projective") for part in ("--method", name)]
    result = run("generate", "--model", digits, *SHORT, "--seeds", "2", *methods, "--out", out)
    assert result.exit_code == 0, result.output
    return result.stdout, out


run, one_line_error = partial(command.run, cli.app), partial(command.one_line_error, cli.app)


def summary(out):
    return json.loads((out / "summary.json").read_text())


# ---- generate --------------------------------------------------------------------------------------------------------


def test_generate_leaves_three_whole_files_and_says_where(generated):
    stdout, out = generated
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert all(str(out / name) in stdout.replace("\n", "") for name in FILES)


def test_images_have_a_band_per_method_and_a_block_per_class(generated):
    _, out = generated
    with Image.open(out / "images.png") as picture:
        tile = tiles.MIN_TILE + 2
        assert picture.size == (pictures.MARGIN + 2 * (2 * tile + pictures.GAP), 34 + 5 * (pictures.MIN_BAND + pictures.GAP))
    with Image.open(out / "schedule.png") as picture:
        picture.verify()


def test_summary_counts_what_the_phases_show(generated):
    _, out = generated
    methods = summary(out)["methods"]
    assert list(methods) == ["full", "fora", "taylorseer", "rfc", "projective"]
    for entry in methods.values():
        assert entry["nfc"] == sum(phases.count("#") for phases in entry["phases"]) / 2
        assert [len(phases) for phases in entry["phases"]] == [entry["steps"]] * 2 == [8, 8]
    assert methods["fora"]["phases"] == methods["taylorseer"]["phases"] == ["##...#.."] * 2
    assert methods["full"]["phases"] == ["########"] * 2


def test_summary_and_table_say_the_same(generated):
    stdout, out = generated
    for name, entry in summary(out)["methods"].items():
        label = name if name == "full" else pictures.LABELS[name]
        cells = next(line.split()[1:] for line in stdout.splitlines() if line.split()[:1] == [label])
        assert cells[0] == f"{round(entry['nfc'], 1):g}"
        assert cells[1] == f"{entry['eager']['median_ms']:.0f}"
        assert cells[-1] == f"{entry['state_mib']:.1f}"
        assert cells[-2] == (entry["psnr_db"] if entry["psnr_db"] == "inf" else f"{entry['psnr_db']:.1f}")


def test_each_seed_is_a_generation_of_its_own(digits, generated, tmp_path):
    _, out = generated
    result = run("generate", "--model", digits, *SHORT, "--seed", "1", "--method", "rfc", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    alone, together = summary(tmp_path)["methods"]["rfc"], summary(out)["methods"]["rfc"]
    assert alone["eps"] == together["eps"][1:]
    assert alone["phases"] == together["phases"][1:]


def test_summary_names_protocol_versions_and_both_sides_of_a_speedup(generated):
    _, out = generated
    record = summary(out)
    assert {"torch", "diffusers", "rfc_fx", "python"} <= record["versions"].keys()
    assert "median" in record["protocol"]
    assert record["threads"] == torch.get_num_threads()
    assert record["settings"]["seeds"] == [0, 1]
    assert record["settings"]["samples"] == 4
    assert record["settings"]["groups"] == ["3", "7"]
    assert record["methods"]["full"]["psnr_db"] == "inf"
    entry = record["methods"]["rfc"]
    assert set(entry["speedup"]) == {"transformed_cached_vs_eager_twin", "transformed_cached_vs_eager_full"}
    ratio = entry["eager"]["median_ms"] / entry["graph"]["median_ms"]
    assert entry["speedup"]["transformed_cached_vs_eager_twin"] == pytest.approx(ratio)
    assert entry["granularity"] == "module"
    assert entry["threshold"] == named_methods.DIGITS_TAU
    assert entry["settings"] == str(rfc.RFC(tau=named_methods.DIGITS_TAU))
    assert [len(eps) for eps in entry["eps"]] == [len(eps) for eps in entry["accumulated_eps"]] == [8, 8]
    assert len(entry["eager"]["times_ms"]) == len(entry["graph"]["times_ms"]) == 2


def test_the_twin_and_the_graph_draw_the_same(generated):
    _, out = generated
    for name in ("fora", "taylorseer", "rfc", "projective"):
        entry = summary(out)["methods"][name]
        assert entry["eager"]["contexts"] == entry["graph"]["contexts"]
        assert entry["psnr_db"] == pytest.approx(entry["psnr_twin_db"], abs=0.5)


def test_generate_gives_each_kind_of_method_its_own_granularity_and_threshold(digits, tmp_path):
    own = {"taylorseer-lite": "output", "delta-dit": "blocks[1:]", "teacache": "stack", "first-block": "blocks[1:]", "dicache": "stack"}
    own |= {"easycache": "stack", "seacache": "stack", "spectrum": "output"}
    names = ["log-snr", "speca", "duca", *own]  # beside those of `generated`; test_arguments makes every one
    chosen = [part for name in names for part in ("--method", name)]
    result = run("generate", "--model", digits, *SHORT, *chosen, "--threshold", "0.2", "--granularity", "block", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    methods = summary(tmp_path)["methods"]
    for name in names:
        entry = methods[name]
        assert entry["granularity"] == own.get(name, "module" if name == "duca" else "block")
        if name in named_methods.taking("threshold"):
            assert entry["threshold"] == 0.2
        assert entry["eager"]["contexts"] == entry["graph"]["contexts"]
        assert entry["psnr_db"] == pytest.approx(entry["psnr_twin_db"], abs=0.5)
    assert "v" in methods["speca"]["phases"][0]
    assert methods["teacache"]["phases"][0][-1] == methods["dicache"]["phases"][0][-1] == "#"  # the last step, as published
    assert not any("twin" in note for note in summary(tmp_path)["notes"])


def test_a_preset_sets_what_was_published_for_a_model_and_options_change_it(digits, tmp_path):
    chosen = ["--preset", "flux.1-dev", "--method", "magcache", "--method", "taylorseer", "--interval", "3"]
    result = run("generate", "--model", digits, *SHORT, *chosen, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    methods = summary(tmp_path)["methods"]
    assert methods["taylorseer"]["settings"] == str(rfc.preset("taylorseer", "flux.1-dev", interval=3))
    full = rfc.preset("magcache", "flux.1-dev", num_steps=8).schedule.full_steps
    assert methods["magcache"]["phases"] == ["".join("#" if step in full else "." for step in range(8))]


def test_a_generation_too_short_to_skip_is_noted(digits, tmp_path):
    result = run("generate", "--model", digits, *SHORT, "--steps", "2", "--method", "fora", "--out", tmp_path)
    assert "nothing can be skipped in 2 steps" in " ".join(result.stdout.split())
    assert summary(tmp_path)["methods"]["fora"]["nfc"] == 2
    assert any("nothing can be skipped" in note for note in summary(tmp_path)["notes"])


def test_a_class_conditional_pipeline_draws_with_its_transformer_accelerated(pipeline, tmp_path):
    result = run("generate", "--model", pipeline, *SHORT, "--method", "fora", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    entry = summary(tmp_path)["methods"]["fora"]
    assert entry["phases"] == ["##...#.."]
    assert summary(tmp_path)["settings"]["model_class"] == "DiTTransformer2DModel"
    assert 10 < entry["psnr_db"] < 100


def test_a_failed_run_leaves_the_folder_as_it_was(digits, tmp_path, monkeypatch):
    (tmp_path / "images.png").write_text("of an earlier run")

    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(pictures, "save_schedule", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        run("generate", "--model", digits, *SHORT, "--steps", "2", "--method", "fora", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["images.png"]
    assert (tmp_path / "images.png").read_text() == "of an earlier run"


def test_psnr_is_infinite_for_equal_images_and_counts_a_range_of_two():
    x = torch.zeros(1, 1, 2, 2)
    assert psnr(x, x) == float("inf")
    assert psnr(x, x + 0.2) == pytest.approx(20.0, abs=1e-4)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tau", "-1"], "tau must be a number >= 0"),
        (["--classes", "10"], "--classes must lie in 0-9, got 10"),
        (["--classes", "a-b"], "--classes must be a list like 3,7 or a range like 0-9, got a-b"),
        (["--classes", "9-0"], "a range goes upwards"),
        (["--method", "magic"], f"{NAMES}, a .json file of calibrate or package.module:name, got magic"),
        (["--method", "magcache"], "its ratios belong to a model; pass --preset with one of flux.1-dev, hunyuanvideo"),
        (["--method", "magcache", "--preset", "sd3"], "--preset: magcache was published with settings for flux.1-dev, hunyuanvideo"),
        (["--preset", "flux.1-dev"], "--preset: log-snr has no published settings; pass --method"),
        (["--method", "disca"], "the predictor was trained for another model"),
        (
            ["--method", "newton", "--preset", "flux.1-dev"],
            "--preset: newton has no published settings; pass --method with one of fora",
        ),
        (["--method", "teacache", "--threshold", "-1"], "threshold must be a number >= 0"),
        (["--method", "teacache", "--tau", "1"], "--tau: not a setting of teacache; rfc, projective, newton have it"),
        (["--threshold", "1"], "--threshold: not a setting of taylorseer, rfc, log-snr; teacache, first-block, dicache"),
        (["--nfc", "51"], "LogSNR: nfc must be at most num_steps (50), got 51"),
        (["--method", "rfc", "--nfc", "9"], "--nfc: not a setting of rfc; chebyshev, log-snr, spectrum have it"),
        (["--method", "dicache", "--order", "2"], "--order: not a setting of dicache; taylorseer, "),
        (
            ["--method", "teacache", "--granularity", "block"],
            "--granularity: TeaCache works on 'stack', got 'block'; leave granularity out",
        ),
        (["--dtype", "int8"], "'--dtype': 'int8' is not one of 'float32', 'bfloat16', 'float16'; see rfc-fx generate --help"),
        (["--device", "abacus"], "--device abacus: not available here"),
        (["--steps", "0"], "'--steps': Input should be greater than or equal to 1; see rfc-fx generate --help"),
        (["--steps", "2000"], "--steps must be at most 1000"),
        (["--steps", "many"], "'--steps'"),
        (["--rounds", "0"], "'--rounds': Input should be"),
        (["--seeds", "0"], "'--seeds': Input should be"),
        (["--interval", "0"], "interval must be an integer of at least 1"),
        (["--method", "rfc", "--order", "3"], "order must be an integer from 1 to 2, got 3"),
        (["--granularity", "atom"], "--granularity must be one of module, block, stack, output, prediction, blocks[a:b], got atom"),
        (
            ["--granularity", "blocks[1]"],
            "--granularity must be one of module, block, stack, output, prediction, blocks[a:b], got blocks[1]",
        ),
        (["--state-budget", "much"], "--state-budget must be a number of bytes such as 2147483648, '2GiB' or '500 MB', got 'much'"),
        (["--state-dtype", "int4"], "'--state-dtype': 'int4' is not one of 'bfloat16', 'float16', 'int8', 'float8_e4m3fn'"),
        (["--dispatch", "magic"], "'--dispatch': 'magic' is not one of 'host', 'cond'"),
        (["--decision", "each"], "'--decision': 'each' is not one of 'batch', 'per_sample'"),
        (["--decision", "per_sample", "--dispatch", "cond"], "--decision per_sample needs --dispatch host"),
        (["--method", "speca", "--dispatch", "cond"], "--dispatch cond: speca has the phases FULL, ESTIMATE, VERIFY, a torch.cond has two"),
        (["--prompt", "a lighthouse"], "this model draws classes"),
        (["--wrong-option"], "No such option: --wrong-option; see rfc-fx generate --help"),
    ],
)
def test_a_bad_option_is_one_line(digits, tmp_path, arguments, text):
    assert text in one_line_error("generate", "--model", digits, "--out", tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["generate", "--model"], ["inspect"]])
def test_a_model_that_is_not_there_is_one_line(command, tmp_path):
    assert "no such folder" in one_line_error(*command, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "expected a folder, got a file" in one_line_error(*command, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "expected config.json" in one_line_error(*command, tmp_path / "empty")


@pytest.mark.parametrize("command", [["generate", "--model"], ["inspect"]])
def test_a_hub_id_without_network_is_one_line(command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "needs the network or a cached copy" in one_line_error(*command, "no-such-owner/no-such-model")


def damaged(digits: Path, tmp_path: Path, damage) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(digits, folder)
    damage(folder)
    return folder


def truncate(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def deepen(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 3}))


@pytest.mark.parametrize("command", [["generate", "--model"], ["inspect"]])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "cannot be loaded"),
        (truncate, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{ not JSON"), "no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected an object of settings"),
        (lambda folder: (folder / "config.json").write_text('{"_class_name": "Nothing"}'), "_class_name is 'Nothing'"),
        (deepen, "weights that config.json asks for are not in the file"),
    ],
)
def test_a_damaged_model_is_one_line(digits, tmp_path, command, damage, text):
    assert text in one_line_error(*command, damaged(digits, tmp_path, damage))


def test_a_damaged_scheduler_is_one_line(digits, tmp_path):
    folder = damaged(digits, tmp_path, lambda folder: (folder / "scheduler_config.json").write_text("{"))
    assert "no JSON" in one_line_error("generate", "--model", folder)


def test_a_folder_that_cannot_be_written_is_one_line(digits, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in one_line_error("generate", "--model", digits, "--out", tmp_path / "file" / "out")


def test_a_transformer_alone_cannot_generate(digits, tmp_path):
    folder = damaged(digits, tmp_path, lambda folder: (folder / "scheduler_config.json").unlink())
    assert "a transformer alone cannot draw; pass its pipeline folder" in one_line_error("generate", "--model", folder)


def test_version_and_help():
    assert run("--version").stdout.startswith("rfc-fx ")
    assert {"generate", "inspect"} <= set(run("--help").stdout.split())
    assert run("--help").exit_code == run("generate", "--help").exit_code == run("inspect", "--help").exit_code == 0
    words = {word.strip(",;") for word in run("generate", "--help").stdout.split()}
    assert {*named_methods.METHODS, "blocks[a:b]", "output"} <= words


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_lists_two_sites_per_block_and_the_guarded_graph(digits):
    result = run("inspect", digits)
    assert result.exit_code == 0, result.output
    assert "4 sites, granularity module" in result.stdout
    for block in (0, 1):
        for part in ("attn1", "ff"):
            assert f"transformer_blocks.{block}.{part}" in result.stdout
    assert "rejected: none" in result.stdout
    assert all(f"{granularity} " in result.stdout for granularity in ("module", "block", "stack"))
    assert "guarded graph of transformer_blocks.0" in result.stdout
    assert result.stdout.count("= select(") == 2


def test_inspect_takes_a_method_a_granularity_and_a_block(digits, pipeline):
    result = run("inspect", pipeline, "--method", "fora", "--granularity", "block", "--block", "transformer_blocks.0")
    assert "1 sites, granularity block" in result.stdout
    assert "guarded graph of transformer_blocks.0" in result.stdout
    assert "--block nowhere: no operation" in one_line_error("inspect", digits, "--block", "nowhere")


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("taylorseer-lite", "1 sites, granularity output"),
        ("first-block", "1 sites, granularity blocks[1:]"),
        ("speca", "4 sites, granularity module"),
    ],
)
def test_inspect_knows_methods_with_a_granularity_of_their_own_and_more_phases(digits, method, found):
    result = run("inspect", digits, "--method", method)
    assert result.exit_code == 0, result.output
    assert found in result.stdout
    assert "guarded graph of" in result.stdout
    assert result.stdout.count("= select(") >= 1
    assert ("VERIFY" in result.stdout) == (method == "speca")
    if method != "speca":
        assert "--granularity: " in one_line_error("inspect", digits, "--method", method, "--granularity", "block")


def test_inspect_chooses_the_granularity_that_fits_and_says_what_depends_on_what(digits):
    result = run("inspect", digits, "--state-budget", "20KB", "--state-dtype", "int8")
    assert "2 sites, granularity block" in result.stdout, result.output
    assert all(f"{name} " in result.stdout for name in ("conditioning", "timestep", "latent", "module", "block", "stack"))
    assert "int8" in result.stdout
    assert "needs more state per context than state_budget=20 bytes: module" in one_line_error("inspect", digits, "--state-budget", "20")


def test_inspect_draws_the_block_it_prints(digits, tmp_path):
    picture = tmp_path / "block.png"
    assert run("inspect", digits, "--draw", picture, "--granularity", "stack").exit_code == 0
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300
    assert "must end in one of .svg, .png, .pdf" in one_line_error("inspect", digits, "--draw", tmp_path / "block.docx")
    assert "cannot be written" in one_line_error("inspect", digits, "--draw", tmp_path / "no" / "folder" / "block.svg")


def test_inspect_refuses_a_class_whose_inputs_it_cannot_make(tmp_path):
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, layers_per_block=1).save_pretrained(tmp_path)
    assert "pass the folder of its pipeline" in one_line_error("inspect", tmp_path)
