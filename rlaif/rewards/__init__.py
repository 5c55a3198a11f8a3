"""Rewards as plug-ins: named parts, each with weight, transform and gate, that are made into one reward.

    rollouts -> judges' actors, function actors -> value of each part -> transform -> gate -> weighted sum

    reward: {model: outputs/reward}             # the judge, as without `rewards`: a part of weight 1
    rewards:
    - {kind: exact_match, name: right, weight: 2, options: {answer: "<answer>(.*?)</answer>"}}
    - {name: esfp, transform: log_sigmoid, gate: positive_only, gated_by: [right]}  # stands for the judge of `reward`
    - {name: second, options: {model: outputs/other_reward}, weight: 0.5}           # a judge of its own
    - {kind: function, name: mine, function: "my_rewards:count_words", options: {unit: 0.1}}

config and options say what may be given, plan what that makes together, combine what comes of it; the *_rules and
semantic hold the built-in rules, functions what a user's function may take and give.
"""
