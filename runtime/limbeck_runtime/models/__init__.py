"""Models: how they are read, rebuilt from a record without their files, made smaller, and looked into."""
