"""The commands of rfc-fx for engines, a file each."""
