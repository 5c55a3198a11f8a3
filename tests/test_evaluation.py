from rlaif.evaluation import SHOWN, evaluation_values, identical_share


def test_the_figures_that_are_there_come_in_the_order_of_the_table():
    found = evaluation_values({"gold": 1, "reward": 0.5, "num_rollouts": 9}, {"max_logprob_gap": 1e-6, "kl": 0.25})
    assert list(found.items()) == [("reward", 0.5), ("gold", 1.0), ("kl", 0.25), ("max_logprob_gap", 1e-6)]
    assert all(isinstance(value, float) for value in found.values())
    assert list(evaluation_values(dict.fromkeys(SHOWN, 0), {})) == list(SHOWN)


def test_texts_that_differ_only_in_outer_blanks_are_the_same_answer():
    assert identical_share(["a cat.", " a cat. ", "a dog.", "a hen."]) == 0.5
    assert identical_share(["same"] * 3) == 1.0
    assert identical_share(["a", "b"]) == 0.0
    assert identical_share([]) == 0.0
