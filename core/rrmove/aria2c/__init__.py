"""An aria2c on the node that is ours alone: what keeps it there, how it resumes, and what its codes mean."""
