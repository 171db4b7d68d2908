"""What meets other packages: a module for each, imported only by who has it."""
