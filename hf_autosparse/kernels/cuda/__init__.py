"""What a GPU computes by CUDA's own libraries."""
