"""Two-way conversion between stores and what the field has on disk; README.md beside this file lists the formats."""
