"""Figures: inline SVG without outside references, and no trace left in matplotlib."""

import io
import re
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from ehrlab.evaluation.curves import CalibrationBin, grid
from ehrlab.report.figures import curves_figure, file_name, history_figure, landscape_figure


def curves(*rows):
    return curves_figure(
        "c",
        {row: 1 - grid() / 2 for row in rows},
        {row: np.sqrt(grid()) for row in rows},
        {row: [CalibrationBin(0.2, 0.25, 12), CalibrationBin(0.7, 0.6, 11)] for row in rows},
        prevalence=0.3,
    )


def test_a_figure_is_inline_svg_in_the_pages_colour_and_a_png():
    figure = curves("lstm", "retain")
    assert figure.svg.startswith("<svg ")
    assert "currentColor" in figure.svg
    assert "http" not in figure.svg
    assert ">lstm</text>" in figure.svg
    assert imread(io.BytesIO(figure.png)).shape[2] == 4


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\bad{", "_hidden", "a & b", ""])
def test_any_row_name_is_drawn_as_text(name):
    svg = curves("lstm", name).svg
    assert "<script" not in svg
    assert svg.count("</text>") > 10


def test_long_row_names_leave_room_for_the_panels():
    rows = [f"medhmp training.phases.finetune.max_epochs=9 training.phases.finetune.patience={n}" for n in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = curves(*rows).svg
    assert all(f"patience={n}" in svg for n in range(5))


def test_drawing_leaves_no_global_state():
    before = dict(matplotlib.rcParams)
    backend = matplotlib.get_backend()
    curves("lstm")
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend


def test_the_same_figure_is_the_same_bytes_and_two_figures_share_no_id():
    assert curves("lstm") == curves("lstm")
    other = history_figure("h", {"val/f1": {"seed 0": [(0, 0.1), (1, 0.4)]}})
    ids = [set(re.findall(r'id="([^"]+)"', f.svg)) for f in (curves("lstm"), other)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize(("num_x", "num_y"), [(5, 4), (1, 3), (2, 1)])
def test_surfaces_render_with_and_without_holes(num_x, num_y, hole):
    z = np.arange(num_x * num_y, dtype=float).reshape(num_y, num_x) + 40
    if hole:
        z[0, 0] = np.nan
    x, y = np.linspace(0.1, 1, num_x).tolist(), np.linspace(0.1, 0.9, num_y).tolist()
    figure = landscape_figure("l", x, y, {"PR-AUC": z, "Kappa": z - 20}, "λ_S", "λ_D")
    for value in z[np.isfinite(z)]:
        assert f">{value:.1f}</text>" in figure.svg
    assert (">40.0</text>" in figure.svg) != hole or num_x * num_y == 1
    assert len(figure.png) > 5000


def test_a_curve_that_does_not_exist_leaves_an_empty_panel():
    nothing = np.full_like(grid(), np.nan)
    assert curves_figure("c", {"a": nothing}, {"a": nothing}, {"a": []}, prevalence=0.0).png


def test_file_names_hold_no_path_and_no_markup():
    assert file_name("curves", "../a/b", "<x>", "") == "curves-.._a_b-x-x"
