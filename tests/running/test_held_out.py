from rlaif.running.held_out import FIRST, evaluation_figures, identical_share

MEANS = {"reward": 0.5, "part_esfp": 0.25, "part_length": 1, "gold": 1, "completion_tokens": 9.5}


def test_the_figures_come_in_the_order_of_the_table_and_the_rest_behind():
    found = evaluation_figures(MEANS, {"max_logprob_gap": 1e-6, "kl": 0.25}, ["a", "b"], "sampled")
    assert list(found.items()) == [
        ("reward", 0.5), ("gold", 1.0), ("kl", 0.25), ("completion_tokens", 9.5), ("max_logprob_gap", 1e-6),
        ("part_esfp", 0.25), ("part_length", 1.0), ("identical_share", 0.0)]
    assert all(isinstance(value, float) for value in found.values())
    everything = dict.fromkeys(reversed(FIRST), 0.0)
    assert list(evaluation_figures(everything, {}, [], "sampled")) == [*FIRST, "identical_share"]


def test_greedy_figures_have_names_of_their_own():
    assert evaluation_figures({"reward": 0.5, "gold": 1.0}, {}, ["a", "a"], "greedy") == {
        "greedy_reward": 0.5, "greedy_gold": 1.0, "greedy_identical_share": 1.0}


def test_texts_that_differ_only_in_outer_blanks_are_the_same_answer():
    assert identical_share(["a cat.", " a cat. ", "a dog.", "a hen."]) == 0.5
    assert identical_share(["same"] * 3) == 1.0
    assert identical_share(["a", "b"]) == 0.0
    assert identical_share([]) == 0.0
