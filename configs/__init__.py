"""Hydra configurations of the verbs; YAML only, a package so that they travel with the wheel."""
