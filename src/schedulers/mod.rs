//! Samplers, each reduced to a table of coefficients; host arithmetic only.
