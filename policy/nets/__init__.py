"""Networks: torch only, tensors in and tensors out."""
