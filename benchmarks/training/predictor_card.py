"""The model card of the predictor."""

from __future__ import annotations

from typing import Any

from benchmarks.training.predictor_loop import BATCH, CFG, STEP_COUNTS


def model_card(
    rows: list[dict[str, Any]], log: list[dict[str, float]], blocks: int, seed: int, full_steps: dict[tuple[int, str], tuple[int, ...]]
) -> str:
    """The card: what it is, how it was made, and what was measured, good or bad."""
    last = log[-1]
    names = list(dict.fromkeys(row["method"] for row in rows))
    lists = list(dict.fromkeys((row["steps"], row["list"]) for row in rows))
    at = {(row["steps"], row["list"], row["method"]): row for row in rows}
    heads = " | ".join(f"{steps} steps, {name}" for steps, name in lists)
    lines = [f"| method | {heads} |", "|---|" + "---|" * len(lists)]
    for method in names:
        cells = (at[steps, name, method] for steps, name in lists)
        lines.append(f"| {method} | " + " | ".join(f"{row['relative_l2']:.4f} ({row['cost']:.2f})" for row in cells) + " |")
    anchors = "; ".join(f"{steps} steps, {name}: {' '.join(map(str, full_steps[steps, name]))}" for steps, name in lists)
    share = next(row["estimate_share"] for row in rows if row["method"] == "DisCa")
    count, drawn = rows[0]["samples"], ", ".join(map(str, sorted(set(STEP_COUNTS))))
    return f"""# A predictor for the digits model (DisCa, arXiv 2602.05449)

At a skipped step h = blocks(W_out SiLU(W_in [embedded tokens, cache])) stands in the place of the digits model's 8 blocks; the
cache is the stream behind the blocks at the last full step, and the {blocks} blocks are of the model's own class. On a model of 8 blocks
that is no small network: a skipped step costs {share:.0%} of a full one's FLOPs (published: under 4 % of the parameters of models
that are far deeper).

Relative L2 distance of the samples to those of full computation, |x - x_full| / |x_full|, mean over {count} samples (closed
loop: each method moves its own latent; DDIM, CFG {CFG}, seeds not trained on); in brackets the FLOPs of a generation as a share of
full computation. All rows of a column compute the same steps in full. Smaller is better. A skipped step of the others is nearly free,
so at equal cost they may have one more full step in eight, three in twenty: compare columns too.

{chr(10).join(lines)}

Full steps: {anchors}.

Made with `python -m benchmarks.train_predictor`: {last["iterations"]:.0f} iterations of {BATCH} rows in {last["minutes"]:.0f} minutes
on one CPU core, seed {seed}, on {last["round"]:.0f} batches of trajectories of {drawn} DDIM steps, half of them moved by the predictor
itself. Squared error of the stream and of the model's output; the published adversarial stage and the distilled sampler are left out.
Weights in float16, the two projections in float32. Measured again with `python -m benchmarks.train_predictor --evaluate-only`.

Limits: for the digits model alone (another is refused). The last step of a list should be full, as in all published lists: it was never a
target of the training.
"""
