"""What a generation batch is made of: the student's own text, a part of it, or given text."""
