"""The definition of every operator, in plain torch and without haste: same name, same signature as the
launcher."""
