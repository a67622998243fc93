"""Who a site's processes are on their host: users, folders, private network (rules 14, 15)."""
