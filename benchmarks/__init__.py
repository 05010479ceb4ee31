"""How fast, beside what the memory allows and beside other libraries."""
