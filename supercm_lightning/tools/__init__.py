"""Commands beside `supercm`: features of images, models for other programs, and the search for options."""
