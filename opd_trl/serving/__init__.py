"""Floor 4: a teacher behind HTTP. `opd-trl serve-teacher` starts it, students on other machines read it."""
