"""Starting weights of the embedded world, with the command, seed and digest that made them."""
