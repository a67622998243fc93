"""The enrolment listener: the one door for those who are no members yet (rules 18)."""
