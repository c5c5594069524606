"""The demos run, and find what they say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

DEMOS = Path(__file__).parent.parent / "demos"


def load_demo(name):
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMOS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rubber():
    for needed in ("jax", "torch", "matplotlib"):
        pytest.importorskip(needed)
    return load_demo("rubber_law")


class TestRubberLaw:
    def test_no_curve_is_both_fitted_and_held_out(self, rubber):
        fitted, held_out = rubber.load()
        assert len(fitted.stretches) + len(held_out.stretches) == 117
        assert sorted(set(held_out.stretches[:, 0])) == [1.3, 2.5]
        assert not fitted.on(rubber.HELD_OUT).any()

    def test_cross_validation_leaves_out_each_inner_curve_once(self, rubber):
        fitted, _ = rubber.load()
        folds = list(rubber.folds(fitted))
        assert len(folds) == 14
        for seen, unseen in folds:
            assert len(seen.stretches) + len(unseen.stretches) == len(fitted.stretches)
            assert not seen.on(unseen.stretches[:1, 0]).any()
        assert rubber.cross_validate_classical("Mooney-Rivlin", fitted) == pytest.approx(0.06747, abs=1e-5)

    @pytest.mark.parametrize("name", ["neo-Hooke", "Mooney-Rivlin"])
    def test_classical_fit_is_the_linear_least_squares_fit(self, rubber, name):
        fitted, _ = rubber.load()
        (l1, l2), p = fitted.stretches.T, fitted.stresses
        l3 = 1 / (l1 * l2)
        powers = [2.0, -2.0][: len(rubber.CLASSICAL[name][1])]
        basis = [np.stack([x ** (a - 1) - l3**a / x for x in (l1, l2)], 1).ravel() for a in powers]
        wanted = np.linalg.lstsq(np.stack(basis, 1), p.ravel(), rcond=None)[0] * np.sign(powers)
        np.testing.assert_allclose(rubber.fit_classical(name, fitted), wanted, rtol=1e-6)

    def test_an_energy_gains_nothing_in_a_closed_cycle(self, rubber):
        fitted, _ = rubber.load()
        law = rubber.Law(rubber.Recipe(), fitted, seed=3)
        t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        cycle = np.stack([1.8 + 0.6 * np.cos(t), 1.2 + 0.4 * np.sin(t)], 1)
        velocity = np.stack([-0.6 * np.sin(t), 0.4 * np.cos(t)], 1)
        power = (law.predict(rubber.somewhere(law, 3), cycle) * velocity).sum(1)
        assert abs(power.mean()) < 1e-12 * abs(power).max()

    @pytest.mark.slow
    def test_learned_law_beats_the_classical_ones_where_it_was_not_fitted(self, rubber, tmp_path, capsys):
        found = rubber.main(["--output", str(tmp_path / "rubber.png")])
        neo_hooke, mooney_rivlin, ogden, learned = found.rows
        wanted = [(0.08726, 0.07901), (0.06293, 0.06023), (0.00846, 0.00703)]
        for row, (fit, held_out) in zip((neo_hooke, mooney_rivlin, ogden), wanted, strict=True):
            assert (row.fit, row.held_out) == pytest.approx((fit, held_out), abs=1e-5)
        assert learned.held_out <= 0.0070
        assert learned.held_out < min(row.held_out for row in found.rows[:3])
        assert found.before.passed, found.before
        for report in (found.before, found.after):
            assert report.rates[1] == pytest.approx(2.0, abs=0.05)
            assert report.rates[2] == pytest.approx(3.0, abs=0.05)
        assert str(learned) in capsys.readouterr().out
        assert (tmp_path / "rubber.png").stat().st_size > 50_000
