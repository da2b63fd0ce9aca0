import re
import xml.etree.ElementTree as ET

import pytest

from rlhfkit.report.svg import Bar, Level, Series, bar_chart, line_chart, path_chart, reliability_chart
from rlhfkit.wording import number, percent, score


def simple_line(ys: list[float], **options):
    series = [Series("training", range(len(ys)), ys, **options)]
    return line_chart(series, title="Loss", x_label="update", y_label="nats", caption="Falls.")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.3149, "1.31"),
        (-0.5, "−0.5"),
        (0, "0"),
        (-0.0, "0"),
        (256, "256"),
        (12345.6, "12\u202f346"),
        (0.000412, "0.000412"),
        (0.0000075, "7.5e-06"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_shares_and_scores_read_well():
    assert percent(0.7349) == "73\u202f%"
    assert percent(0.996) == "99.6\u202f%"
    assert percent(0.004) == "0.4\u202f%"
    assert [percent(0.0), percent(1.0)] == ["0\u202f%", "100\u202f%"]
    assert percent(None) == "–"
    assert score(-0.5) == "−0.50"
    assert score(-0.004) == "0.00"
    assert score(12345.6) == "12\u202f346"
    assert score(None) == "–"


def test_chart_is_well_formed_and_takes_its_colours_from_the_page():
    svg = str(simple_line([3.0, 2.0, 1.5]).svg)
    assert {"nats", "update"} <= set(texts(svg))
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    assert "var(--after)" in svg
    assert "http" not in svg
    assert "<style" not in svg


def test_same_data_gives_the_same_bytes():
    assert simple_line([3.0, 2.0]).svg == simple_line([3.0, 2.0]).svg


def test_labels_are_text_not_markup_and_not_mathematics():
    label = '<b onload="x">$\\frac{1}{2}$ & co'
    svg = str(bar_chart([Bar(label, 0.5)], title=label, x_label="share", caption="").svg)
    assert ET.fromstring(svg).attrib["aria-label"].startswith(label)
    assert "<b" not in svg
    assert any("$" in text for text in texts(svg))


def test_description_tells_the_course():
    assert simple_line([3.0, 2.0, 1.5]).svg.startswith('<svg viewBox="0 0 320 190" role="img"')
    assert "training goes from 3 to 1.5" in simple_line([3.0, 2.0, 1.5]).svg


def test_long_curves_stay_small():
    assert len(simple_line([1.0 / (1 + at) for at in range(20_000)], smooth=True).svg) < 30_000


def test_a_trend_follows_a_straight_line_to_its_ends():
    ys = [2.0 * at for at in range(64)]
    paths = re.findall(r'<path d="([^"]+)" clip-path', str(simple_line(ys, smooth=True).svg))
    pale, strong = (re.findall(r"[ML] (\S+) (\S+)", path) for path in paths[-2:])
    assert pale[0] == strong[0]
    assert pale[-1] == strong[-1]


def test_several_series_have_a_legend_and_one_has_none():
    two = [Series("training", [1, 2], [3.0, 2.0]), Series("validation", [2], [2.5], colour="before")]
    chart = line_chart(two, title="Loss", x_label="update", y_label="nats", caption="")
    assert chart.legend == (("after", "training"), ("before", "validation"))
    assert simple_line([1.0]).legend == ()


def test_levels_are_drawn_within_the_limits():
    series = [Series("KL", [1, 2, 3], [1.0, 2.0, 3.0])]
    levels = [Level(6.0, "target")]
    chart = line_chart(
        series, title="KL", x_label="iteration", y_label="nats", caption="", levels=levels, limits=(0, None)
    )
    assert "target" in texts(str(chart.svg))
    assert "6" in texts(str(chart.svg))


def test_other_charts_are_well_formed():
    charts = [
        path_chart([0.0, 1.0, 2.0], [0.0, 1.0, 1.5], title="Path", x_label="KL", y_label="score", caption=""),
        path_chart([0.0, 1.0, 2.0, 3.0], [0.0] * 4, title="Path", x_label="KL", y_label="score", caption=""),
        reliability_chart([0.55, 0.95], [0.5, 0.9], [10, 20], title="Calibration", caption=""),
        bar_chart([Bar("model", 0.7, 0.65, 0.75, "after"), Bar("coin", 0.5)], title="Bars", x_label="", caption=""),
    ]
    for chart in charts:
        ET.fromstring(str(chart.svg))
    assert {"start", "end"} <= set(texts(str(charts[0].svg)))
    assert {"70\u202f%", "50\u202f%"} <= set(texts(str(charts[-1].svg)))


def test_drawing_leaves_matplotlibs_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    simple_line([1.0, 2.0])
    assert dict(matplotlib.rcParams) == before
