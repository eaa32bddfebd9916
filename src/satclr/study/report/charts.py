"""The charts of the report as Plotly figures; colours of text and grid are the page's, for light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from satclr.study.figures import Palette

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
Curves = Mapping[str, Sequence[Sequence[float]]]  # arm → seeds → value an epoch


def to_json(figure: Any) -> str:
    """A figure as JSON that can stand inside a script element."""
    return str(figure.to_json()).replace("</", "<\\/")


def arms(entries: Mapping[str, Mapping[str, Any]], palette: Palette) -> Any:
    """Test mAP of every arm with its 95% interval, best at the top as in the table's order."""
    figure = _figure(height=70 + 46 * len(entries))
    for name, entry in entries.items():
        low, high = entry["test_mAP_ci95"]
        middle = entry["test_mAP"]
        figure.add_scatter(
            x=[middle], y=[name], mode="markers", marker={"color": palette.colour(name), "size": 12},
            error_x={"type": "data", "array": [high - middle], "arrayminus": [middle - low], "thickness": 2},
            hovertemplate=f"{name}: {middle:.4f} [{low:.4f}, {high:.4f}]<extra></extra>", showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(title="test mAP")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def curves(values: Curves, palette: Palette, *, ylabel: str) -> Any:
    """One line an arm and seed over epochs."""
    figure = _figure(height=320)
    for arm, seeds in values.items():
        for i, line in enumerate(seeds):
            figure.add_scatter(
                x=list(range(1, len(line) + 1)), y=list(line), mode="lines", name=arm, legendgroup=arm,
                showlegend=i == 0, line={"color": palette.colour(arm), "dash": DASHES[palette.style(arm)]},
                hovertemplate=f"{arm}, epoch %{{x}}: %{{y:.4f}}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=ylabel, automargin=True)
    return figure


def labels(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], palette: Palette) -> Any:
    """AP of every label with its interval, arms beside each other on the label's line; rows of `per_label`."""
    figure = _label_dots(rows, arms, palette, keys=("AP", "AP_lo", "AP_hi"), height=_height(rows, arms))
    figure.update_xaxes(title="test AP", range=[0, 1.02])
    return figure


def differences(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], palette: Palette) -> Any:
    """How much more AP than the first arm's every label has, with its paired interval; rows of `per_label`."""
    keys = ("delta_AP", "delta_AP_lo", "delta_AP_hi")
    figure = _label_dots(rows, arms[1:], palette, keys=keys, height=_height(rows, arms))
    figure.update_xaxes(title=f"difference in test AP to {arms[0]}", zeroline=True)
    return figure


def _height(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> int:
    """The same for both charts of labels, so that a label's lines stand side by side."""
    return 90 + (12 + 9 * len(arms)) * len(rows)


def _label_dots(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[str], palette: Palette, *, keys: Sequence[str], height: int
) -> Any:
    figure = _figure(height=height)
    for i, arm in enumerate(arms):
        middle, low, high = ([float(row["arms"][arm][key]) for row in rows] for key in keys)
        shift = 0.6 * ((i + 0.5) / len(arms) - 0.5)
        figure.add_scatter(
            x=middle, y=[place + shift for place in range(len(rows))], mode="markers", name=arm,
            text=[f"{row['label']}: {row['positives']} positives" for row in rows],
            customdata=list(zip(low, high, strict=True)),
            marker={"color": palette.colour(arm), "size": 7},
            error_x={
                "type": "data", "array": _gaps(high, middle), "arrayminus": _gaps(middle, low), "width": 0,
            },
            hovertemplate=(
                f"%{{text}}<br>{arm}: %{{x:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
            ),
            showlegend=True,
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[row["label"] for row in rows],
        range=[len(rows) - 0.4, -0.6],
        automargin=True,
    )
    return figure


def label_efficiency(rows: Mapping[str, Sequence[Mapping[str, Any]]], palette: Palette) -> Any:
    """Test mAP of the best probe against the share of training labels, with the spread over subsets."""
    figure = _figure(height=340)
    for arm, points in rows.items():
        figure.add_scatter(
            x=[100 * p["fraction"] for p in points], y=[p["test_mAP"] for p in points], name=arm,
            mode="lines+markers", line={"color": palette.colour(arm), "dash": DASHES[palette.style(arm)]},
            error_y={"type": "data", "array": [p["sd"] or 0 for p in points], "thickness": 1.5},
            text=[f"{p['tiles']} tiles" for p in points],
            hovertemplate=f"{arm}, %{{text}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    shares = sorted({100 * p["fraction"] for points in rows.values() for p in points})
    figure.update_xaxes(title="training labels", type="log", tickvals=shares, ticktext=[f"{s:g}%" for s in shares])
    figure.update_yaxes(title="test mAP of the best probe", automargin=True)
    return figure


def robustness(found: Mapping[str, Mapping[str, Any]], palette: Palette) -> Any:
    """What mAP is left under every corruption, a mean over strengths; the clean value is a line."""
    names = list(next(iter(found.values()))["corruptions"])
    figure = _figure(height=110 + (14 + 10 * len(found)) * len(names))
    for arm, result in found.items():
        values = [list(result["corruptions"][name].values()) for name in names]
        figure.add_bar(
            orientation="h", y=[name.replace("_", " ") for name in names], name=arm,
            x=[sum(v) / len(v) for v in values], marker={"color": palette.colour(arm)},
            text=[", ".join(f"{x:.3f}" for x in v) for v in values], textposition="none",
            hovertemplate=f"{arm}, %{{y}}: %{{text}}<extra></extra>",
        )  # fmt: skip
        figure.add_vline(x=result["clean_mAP"], line={"color": palette.colour(arm), "dash": "dot", "width": 1.5})
    figure.update_xaxes(title="test mAP", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def embedding() -> Any:
    """The frame of one map: the page fills in coordinates and colours."""
    figure = _figure(height=380)
    figure.add_scatter(x=[], y=[], mode="markers", marker={"size": 6, "opacity": 0.85}, hoverinfo="none")
    figure.update_layout(hovermode="closest", margin={"l": 4, "r": 4, "t": 4, "b": 4}, dragmode="pan")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def prevalence(counts: Mapping[str, int]) -> Any:
    """How many tiles have each label, most first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    figure = _figure(height=70 + 17 * len(ranked))
    figure.add_bar(
        orientation="h", y=[name for name, _ in ranked], x=[count for _, count in ranked],
        marker={"color": "#7F7F7F"}, hovertemplate="%{y}: %{x} tiles<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="tiles")
    figure.update_yaxes(autorange="reversed", automargin=True, dtick=1)
    return figure


def _gaps(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    return [max(0.0, a - b) for a, b in zip(upper, lower, strict=True)]


def _figure(*, height: int) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 8, "r": 12, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        hovermode="closest",
    )
    return figure
