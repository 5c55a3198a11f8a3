"""The ESFP reward: a language model explains, a masked one fills slots; beside it the judges it is compared with."""
