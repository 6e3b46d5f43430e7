"""What the verbs of the command line do, without any knowledge of Hydra: each gets plain, instantiated values."""
