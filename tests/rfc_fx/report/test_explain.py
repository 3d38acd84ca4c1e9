"""What a user is told of a model: block by block, in words and as a drawing."""

from pathlib import Path

import pytest
from families import shared_model
from PIL import Image

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")


def test_every_block_is_listed_with_its_sites_and_with_what_is_none_and_why() -> None:
    model, kwargs = shared_model("sd3")
    explanation = rfc_fx.explain(model, rfc.FORA(), example_inputs=kwargs)
    sites, rejected = explanation.blocks["transformer_blocks.1"]
    assert {"transformer_blocks.1.attn", "transformer_blocks.1.ff.net"} <= set(sites)
    assert any("no estimated step needs its output" in why for _, why in rejected)
    assert all(f"transformer_blocks.{i}" in str(explanation) for i in range(2))
    assert "no estimated step needs its output" in str(explanation)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_block_is_drawn(tmp_path: Path, suffix: str) -> None:
    model, kwargs = shared_model("flux")
    explanation = rfc_fx.explain(model, example_inputs=kwargs)
    path = tmp_path / f"block.{suffix}"
    explanation.draw(path, "single_transformer_blocks.0")
    if suffix == "png":
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    else:
        assert path.read_text().startswith("<?xml")


def test_a_block_that_is_not_there_is_an_error_that_names_some_that_are(tmp_path: Path) -> None:
    model, kwargs = shared_model("dit")
    with pytest.raises(
        rfc_fx.RFCError, match=r"no operation of DiTTransformer2DModel lies in 'blocks\.7'; blocks are transformer_blocks\.0"
    ):
        rfc_fx.explain(model, example_inputs=kwargs).draw(tmp_path / "x.png", "blocks.7")
    assert not list(tmp_path.iterdir())
