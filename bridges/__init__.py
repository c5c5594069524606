"""The edge of pyadjoint-utils: one module per engine, all of the same shape. Import their names from pyadjoint_utils."""

# Tells this package from an unrelated distribution that installs the same name.
PROJECT = "pyadjoint-utils"
