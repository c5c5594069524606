"""The demos run, and find what they say."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pyadjoint_utils import NotConvergedWarning

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


@pytest.fixture(scope="module")
def lynx():
    for needed in ("jax", "tensorflow", "matplotlib"):
        pytest.importorskip(needed)
    return load_demo("lynx_and_hare")


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


class TestLynxAndHare:
    def test_the_last_years_take_no_part_in_the_fit(self, lynx):
        counts = lynx.load()
        assert counts.years.tolist() == list(range(1900, 1921))
        assert counts.fitted == 16
        changed = lynx.Counts(counts.years, np.concatenate([counts.pelts[:16], 7.0 * counts.pelts[16:]]))
        values = lynx.with_network(lynx.plain_start(counts), seed=2)
        found = [lynx.record(lynx.Model(4), data, values, None)(list(values.values())) for data in (counts, changed)]
        assert float(found[0]) == float(found[1])
        assert counts.errors(counts.states) == (0.0, 0.0)
        assert changed.errors(counts.states) == pytest.approx((0.0, np.log(7.0)))

    def test_without_a_network_the_invariant_of_lotka_and_volterra_stays(self, lynx):
        values = lynx.plain_start(lynx.load())
        a, b, c, d = np.exp(values["log_rates"].numpy())
        curve = lynx.Model(20).curve(values, 20)
        invariant = d * np.exp(curve[:, 0]) - c * curve[:, 0] + b * np.exp(curve[:, 1]) - a * curve[:, 1]
        assert abs(invariant - invariant[0]).max() < 1e-6 * np.ptp(curve)

    def test_extrapolating_the_network_keeps_the_second_order(self, lynx):
        counts = lynx.load()
        rng = np.random.default_rng(1)
        values = lynx.with_network(lynx.plain_start(counts), seed=1)
        values["out"] = lynx.array(0.3 * rng.standard_normal((lynx.UNITS, 2)))
        ends = [lynx.Model(steps).curve(values, 2)[-1] for steps in (10, 20, 40, 80)]
        errors = [abs(coarse - fine).max() for coarse, fine in pairwise(ends)]
        assert all(np.log2(coarse / fine) > 1.7 for coarse, fine in pairwise(errors))

    def test_the_gradient_is_that_of_the_loop_written_in_one_engine(self, lynx):
        import jax
        import jax.numpy as jnp
        from checkpoint_schedules import Revolve

        counts, steps = lynx.load(), 6
        counts = lynx.Counts(counts.years[:8], counts.pelts[:8])  # two time intervals to fit
        rng = np.random.default_rng(3)
        values = lynx.with_network(lynx.plain_start(counts), seed=3)
        values["out"] = lynx.array(0.3 * rng.standard_normal((lynx.UNITS, 2)))

        @jax.jit
        def step(rates, x, learned):
            a, b, c, d = jnp.exp(rates)
            right = lambda y: jnp.stack([a - b * jnp.exp(y[1]), d * jnp.exp(y[0]) - c]) + learned
            h = 1 / steps
            k1 = right(x)
            k2 = right(x + 0.5 * h * k1)
            k3 = right(x + 0.5 * h * k2)
            return x + h * (k1 + 2 * k2 + 2 * k3 + right(x + h * k3)) / 6

        net = jax.jit(lambda x, hidden, bias, out: jnp.tanh(x @ hidden + bias) @ out)

        def functional(rates, x, *weights):
            total = sum((w**2).sum() for w in weights) / 0.3**2 + ((x - counts.states[0]) ** 2).sum() / 0.25**2
            old = new = net(x, *weights)
            for n in range(2 * steps):
                if n and n % 4 == 0:
                    old, new = new, net(x, *weights)
                x = step(rates, x, new + (n % 4 + 0.5) / 4 * (new - old))
                if (n + 1) % steps == 0:
                    total += ((x - counts.states[(n + 1) // steps]) ** 2).sum() / 0.25**2
            return total / 2

        with jax.enable_x64(True):
            wanted = jax.grad(functional, argnums=range(5))(*(jnp.asarray(v.numpy()) for v in values.values()))
        rf = lynx.record(lynx.Model(steps), counts, values, Revolve(2 * steps, 5))
        for found, expected in zip(rf.derivative(), wanted, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_a_short_run_finds_tells_and_draws(self, lynx, tmp_path, capsys):
        picture = tmp_path / "lynx.png"
        options = {"--steps": 4, "--snapshots": 5, "--iterations": 10, "--output": picture}
        with pytest.warns(NotConvergedWarning):  # so few iterations are not enough
            found = lynx.main([str(word) for pair in options.items() for word in pair])
        plain, learned = found.rows
        assert learned.fitted < plain.fitted < 0.25
        every, kept = found.costs
        assert every.states >= 15 * 4
        assert kept.states < 30
        for one, other in zip(every.gradient, kept.gradient, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        assert found.report.passed, found.report
        assert str(learned) in capsys.readouterr().out
        assert picture.stat().st_size > 50_000
