"""Two evaluations on the same starts, counted by hand."""

import json

import pytest

from policy.compare import Comparison, load_results, run
from policy.entry import compose_config


def results(successes, *, seed=0, env="pillar", **more):
    """As of `cadence evaluate`; the score of a success is 1, that of a failure 0.5."""
    episodes = [
        {"seed": seed + i, "success": success, "score": 1.0 if success else 0.5}
        for i, success in enumerate(successes)
    ]
    rate = sum(successes) / len(successes)
    return {"env": env, "episodes": episodes, "success": rate, "score": 0.0, **more}


A = [True, True, False, False, False, False, True]
B = [True, False, True, True, True, True, True]


def test_pairs_are_counted():
    found = Comparison.of(results(A), results(B))
    assert (found.n, found.both, found.only_a, found.only_b) == (7, 2, 1, 4)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert found.success[0] == pytest.approx(3 / 7)
    assert found.score[0] == pytest.approx(1.5 / 7)
    assert found.success[1] < 3 / 7 < found.success[2]


def test_the_order_of_the_episodes_does_not_matter():
    shuffled = results(B)
    shuffled["episodes"] = shuffled["episodes"][::-1]
    assert Comparison.of(results(A), shuffled) == Comparison.of(results(A), results(B))


def test_the_other_way_round_the_signs_are():
    there, back = Comparison.of(results(A), results(B)), Comparison.of(results(B), results(A))
    assert there.p_value == back.p_value
    assert there.success[0] == -back.success[0]
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)


def test_starts_of_one_seed_in_two_tasks_are_two():
    both = [{**e, "task": task} for task in ("left", "right") for e in results(A)["episodes"]]
    found = Comparison.of({**results(A), "episodes": both}, {**results(A), "episodes": both})
    assert found.n == 14


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results(B, seed=3), "a has 7 starts and b 7, of which 4 are the same"),
        (results(B[:5]), "a has 7 starts and b 5"),
        (results(B, env="push_t"), "env pillar, b with push_t"),
    ],
)
def test_what_cannot_be_paired_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Comparison.of(results(A), other)


def test_it_reads_folders_and_says_what_it_found(tmp_path, capsys):
    for name, successes in {"a": A, "b": B}.items():
        (tmp_path / name).mkdir()
        text = json.dumps(results(successes, complete=name == "a"))
        (tmp_path / name / "results.json").write_text(text)
    run(compose_config("compare", [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b' / 'results.json'}"]))
    out = capsys.readouterr().out
    assert "only a in 1, only b in 4" in out
    assert "p = 0.38" in out
    assert "b was interrupted" in out


@pytest.mark.parametrize("text", ["{", "[]", '{"n": 1}'])
def test_other_files_are_refused(text, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is no"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        load_results(tmp_path / "nowhere")
