"""Plans that come with the package: `gcpo-bench ablate --plan NAME`."""
