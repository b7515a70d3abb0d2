"""TeaCache: reusing the residual of the main layers across calls."""
