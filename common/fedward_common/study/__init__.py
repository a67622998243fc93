"""What a study is: the specification, its variants, its file and its signature."""
