"""The commands of `aezoo`, one file for each group; `aezoo.cli` names them all."""
