"""What the tables of parts and variants compare: label -> name of a method."""

from __future__ import annotations

ABLATIONS: dict[str, dict[str, str]] = {
    f"m={m}": {
        "TaylorSeer": f"TaylorSeer m={m}",
        "+ RFE": f"RFE m={m}, uniform",
        "+ RCS": f"Taylor m={m} + RCS",
        "RFC (both)": f"RFC m={m}",
    }
    for m in (1, 2)
}
"""The paper's ablation: label -> method."""


MAGNITUDES = {
    "w = 0.8": "Taylor m=1 x 0.8",
    "w = 1.0 (TaylorSeer)": "TaylorSeer m=1",
    "w = 1.2": "Taylor m=1 x 1.2",
    "RFE": "RFE m=1, uniform",
}
"""How far along Taylor's direction of order 1, at equal gaps."""


NORMS = {
    "per sample (RFC)": "RFE m=1, uniform",
    "per token": "RFE m=1 per token, uniform",
    "whole batch": "RFE m=1 per tensor, uniform",
}
"""Over what RFE takes its norms, at equal gaps."""


WATCHED = {
    "first site, as it goes (RFC)": "RFC m=1",
    "first site, planned": "RFE m=1 + planned RCS, first site",
    "all sites, planned": "RFE m=1 + planned RCS, all sites",
}
"""Which inputs RCS looks at."""


PLACES = {
    "equal gaps": "Newton m=2, uniform",
    "RCS": "Newton m=2 + RCS",
    "RCS with one leading full step": "NewtonRCS m=2",
    "placed": "Newton m=2 + placed",
}
"""Which steps are full, with the same forecast."""


FORECASTS = {
    "reuse": "Reuse + placed",
    "Taylor m=1 (Newton m=1 is the same)": "Taylor m=1 + placed",
    "Taylor m=2": "Taylor m=2 + placed",
    "RFE m=1": "RFE m=1 + placed",
    "RFE m=2": "RFE m=2 + placed",
    "Newton m=2": "Newton m=2 + placed",
    "Newton m=3": "Newton m=3 + placed",
    "Newton m=2, damped": "Newton m=2 damped + placed",
    "Newton m=3, damped": "Newton m=3 damped + placed",
    "Newton m=1, time by intervals": "Newton m=1 by intervals + placed",
    "Newton m=2, time by intervals": "Newton m=2 by intervals + placed",
    "Newton m=2, damped, time by intervals": "Newton m=2 damped by intervals + placed",
    "the same, denser at the ends (Chebyshev)": "Chebyshev",
}
"""What the forecast is, at the same full steps but for the last line; what it counts time in (`rfc.Placed.unit`)."""


AT_LEVELS = {
    "reuse": "Reuse + LogSNR steps",
    "Taylor m=1": "Taylor m=1 + LogSNR steps",
    "RFE m=1": "RFE m=1 + LogSNR steps",
    "RFE m=2": "RFE m=2 + LogSNR steps",
    "Newton m=2": "Newton m=2 + LogSNR steps",
    "Newton m=2, damped, time by steps": "Newton m=2 damped by steps + LogSNR steps",
    "Newton m=2, damped (LogSNR)": "LogSNR",
}
"""What the forecast is, at the full steps that `rfc.LogSNR` places; time by intervals but in one line."""


TOKENS = {
    "reuse at equal gaps (FORA)": "FORA",
    "reuse at ToCa's steps": "Reuse at ToCa's steps",
    "ToCa": "ToCa",
    "DuCa": "DuCa",
}
"""What the list of full steps brings and what the computed tokens bring."""
