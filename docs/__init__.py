"""The pages of the documentation, and the script that draws their figures."""
