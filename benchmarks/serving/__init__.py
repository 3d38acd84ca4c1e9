"""Load on a server: many clients, replicas that are killed, and whether every picture is the one drawn alone."""
