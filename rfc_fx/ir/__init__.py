"""What the passes share: operations, phases, programs, state layout, plan and configuration."""
