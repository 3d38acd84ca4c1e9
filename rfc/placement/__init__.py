"""Full steps placed before a generation begins: by noise levels, by Chebyshev nodes, by magnitude ratios."""
