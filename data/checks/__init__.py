"""What may be wrong with demonstrations: one suspicion a file, put together by `data.doctor`."""
