"""Configuration: one dataclass a component, its checks, and the way from YAML to it."""
