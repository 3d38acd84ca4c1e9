"""The commands of rfc-fx that need no engine, a file each."""
