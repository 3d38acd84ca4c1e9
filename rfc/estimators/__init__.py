"""How the output of a site is forecast: O + sum_i c_i dO_i."""
