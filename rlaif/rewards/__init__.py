"""Rewards as plug-ins: named parts, each with weight, transform and gate, that are combined into one reward.

    rollouts -> judges' actors, function actors -> raw value of each part -> transform -> gate -> weighted sum
"""
