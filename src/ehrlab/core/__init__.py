"""The nouns of the project. Import from the submodules: `core.errors` and `core.spec` need no torch."""
