"""The measurements of `cadence bench`, one a file, and what they share."""
