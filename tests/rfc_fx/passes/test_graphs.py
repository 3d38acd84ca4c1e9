"""The graphs as they print, and the laws that a broken pass would break."""

import pytest
from families import moved, shared_model
from inline_snapshot import snapshot

import rfc
import rfc_fx
from rfc_fx.errors import IllegalGraphError
from rfc_fx.ir.ops import aten, select
from rfc_fx.passes.specialize import specialize
from rfc_fx.passes.verify import verify_guarded, verify_programs
from rfc_fx.report.text import guarded_text

pytestmark = pytest.mark.usefixtures("captured_once")


def cached(family: str = "dit", method: object = None) -> rfc_fx.CachedModel:
    model, kwargs = shared_model(family)
    return rfc_fx.transform(model, method or rfc.RFC(), example_inputs=moved(kwargs, 0))


def test_one_block_of_the_guarded_graph_reads_like_the_model() -> None:
    assert guarded_text(cached().guarded, "transformer_blocks.1") == snapshot("""\
arange_1: 128 = arange.start(0, 128, dtype=torch.float32, device=cpu, pin_memory=False)
mul_7: 128 = mul.Tensor(arange_1, -9.210340371976184)
div_2: 128 = div.Tensor(mul_7, 127)
exp_1: 128 = exp(div_2)
unsqueeze_8: 2x1 = unsqueeze(timestep, 1)
to_4: 2x1 = to.dtype(unsqueeze_8, torch.float32)
unsqueeze_9: 1x128 = unsqueeze(exp_1, 0)
mul_8: 2x128 = mul.Tensor(to_4, unsqueeze_9)
sin_1: 2x128 = sin(mul_8)
cos_1: 2x128 = cos(mul_8)
cat_2: 2x256 = cat([sin_1, cos_1], -1)
slice_3: 2x128 = slice.Tensor(cat_2, 1, 128, 9223372036854775807)
slice_4: 2x128 = slice.Tensor(cat_2, 1, 0, 128)
cat_3: 2x256 = cat([slice_3, slice_4], -1)
linear_9: 2x16 = linear(cat_3, weight, bias)
silu_2: 2x16 = silu(linear_9)
linear_10: 2x16 = linear(silu_2, weight, bias)
embedding_1: 2x16 = embedding(weight, class_labels)
add_8: 2x16 = add.Tensor(linear_10, embedding_1)
silu_3: 2x16 = silu(add_8)
linear_11: 2x96 = linear(silu_3, weight, bias)
chunk_1: - = chunk(linear_11, 6, 1)
getitem_6: 2x16 = getitem(chunk_1, 0)
getitem_7: 2x16 = getitem(chunk_1, 1)
getitem_8: 2x16 = getitem(chunk_1, 2)
getitem_9: 2x16 = getitem(chunk_1, 3)
getitem_10: 2x16 = getitem(chunk_1, 4)
getitem_11: 2x16 = getitem(chunk_1, 5)
layer_norm_2: 2x16x16 = layer_norm(add_7, [16], None, None, 1e-06, False)
unsqueeze_10: 2x1x16 = unsqueeze(getitem_7, 1)
add_9: 2x1x16 = add.Tensor(unsqueeze_10, 1)
mul_10: 2x16x16 = mul.Tensor(layer_norm_2, add_9)
unsqueeze_11: 2x1x16 = unsqueeze(getitem_6, 1)
add_10: 2x16x16 = add.Tensor(mul_10, unsqueeze_11)
full_transformer_blocks_1_attn1: 2x16x16 = full_transformer_blocks_1_attn1(add_10)
select_2: 2x16x16 = select(phase, full_transformer_blocks_1_attn1, I=add_10, site=transformer_blocks.1.attn1)
unsqueeze_12: 2x1x16 = unsqueeze(getitem_8, 1)
mul_11: 2x16x16 = mul.Tensor(unsqueeze_12, select_2)
add_11: 2x16x16 = add.Tensor(mul_11, add_7)
layer_norm_3: 2x16x16 = layer_norm(add_11, [16], None, None, 1e-05, False)
unsqueeze_13: 2x1x16 = unsqueeze(getitem_10, 1)
add_12: 2x1x16 = add.Tensor(unsqueeze_13, 1)
mul_12: 2x16x16 = mul.Tensor(layer_norm_3, add_12)
unsqueeze_14: 2x1x16 = unsqueeze(getitem_9, 1)
add_13: 2x16x16 = add.Tensor(mul_12, unsqueeze_14)
full_transformer_blocks_1_ff_net: 2x16x16 = full_transformer_blocks_1_ff_net(add_13)
select_3: 2x16x16 = select(phase, full_transformer_blocks_1_ff_net, I=add_13, site=transformer_blocks.1.ff.net)
unsqueeze_15: 2x1x16 = unsqueeze(getitem_11, 1)
mul_13: 2x16x16 = mul.Tensor(unsqueeze_15, select_3)
add_14: 2x16x16 = add.Tensor(mul_13, add_11)\
""")


def test_the_two_streams_of_a_joint_attention_share_one_call() -> None:
    text = guarded_text(cached("flux").guarded, "transformer_blocks.1.attn")
    assert text == snapshot("""\
unsqueeze_28: 1x21x16 = unsqueeze(cat_5, 0)
unsqueeze_29: 1x21x1x16 = unsqueeze(unsqueeze_28, 2)
unsqueeze_30: 1x21x16 = unsqueeze(cat_6, 0)
unsqueeze_31: 1x21x1x16 = unsqueeze(unsqueeze_30, 2)
unsqueeze_32: 1x21x16 = unsqueeze(cat_5, 0)
unsqueeze_33: 1x21x1x16 = unsqueeze(unsqueeze_32, 2)
unsqueeze_34: 1x21x16 = unsqueeze(cat_6, 0)
unsqueeze_35: 1x21x1x16 = unsqueeze(unsqueeze_34, 2)
full_transformer_blocks_1_attn: - = full_transformer_blocks_1_attn(add_17, add_19, unsqueeze_29, unsqueeze_31, unsqueeze_33, unsqueeze_35)
select_7: 2x16x32 = select(phase, getitem_30, I=add_17, site=transformer_blocks.1.attn)
select_8: 2x5x32 = select(phase, getitem_31, I=add_19, site=transformer_blocks.1.attn.to_add_out)\
""")


def test_programs_split_before_the_decision_and_repeat_nothing_heavy() -> None:
    programs = cached().programs
    assert {name: program.results for name, program in programs.items()} == snapshot(
        {"PREFIX": ("decision", "carry:add", "carry:linear_2"), "FULL": ("output:0",), "ESTIMATE": ("output:0",)}
    )
    heavy = {name: sum(n.target is aten.conv2d.default for n in program.graph.nodes) for name, program in programs.items()}
    assert heavy == {"PREFIX": 1, "FULL": 0, "ESTIMATE": 0}


def test_estimate_of_taylor_needs_no_norm_and_no_attention() -> None:
    model = cached(method=rfc.TaylorSeer(order=1))
    targets = {str(node.target) for node in model.programs["ESTIMATE"].graph.nodes}
    assert not targets & {"aten.scaled_dot_product_attention.default", "aten.gelu.default", "aten.dropout.default"}
    norms = sum(node.target is aten.layer_norm.default for node in model.programs["ESTIMATE"].graph.nodes)
    assert norms == 1  # the output head's


def test_the_callers_graph_prints_the_same_after_every_pass() -> None:
    model = cached()
    before = str(model.guarded.module.graph)
    specialize(model.guarded, "FULL")
    specialize(model.guarded, "ESTIMATE")
    assert str(model.guarded.module.graph) == before


def test_a_site_read_past_its_guard_is_caught() -> None:
    guarded = cached().guarded
    gate = next(node for node in guarded.module.graph.nodes if node.target is select)
    next(iter(gate.users)).replace_input_with(gate, gate.args[1])
    with pytest.raises(IllegalGraphError, match=r"a site's full result is read by its guard alone.*past its guard"):
        verify_guarded(guarded)


def test_state_that_full_forgets_to_write_is_caught() -> None:
    model = cached()
    graph = model.programs["FULL"].graph
    graph.erase_node(next(node for node in graph.nodes if node.target is aten.copy_.default))
    with pytest.raises(IllegalGraphError, match=r"every slot that is read is written by FULL.*which FULL does not write"):
        verify_programs(model.guarded, model.programs)


def test_an_estimate_that_computes_a_site_is_caught() -> None:
    model = cached()
    programs = {**model.programs, "ESTIMATE": model.programs["FULL"]}
    with pytest.raises(IllegalGraphError, match=r"only FULL writes|does no site's work"):
        verify_programs(model.guarded, programs)


def test_calling_the_marker_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="is a marker"):
        select("FULL", None, I=None, base=None, site="x")  # type: ignore[arg-type]
