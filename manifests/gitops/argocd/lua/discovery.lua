-- Which actions Argo CD offers for a CompressionJob: suspend one that may run, resume one that is suspended.
local finished = false
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if (condition.type == "Complete" or condition.type == "Failed") and condition.status == "True" then
    finished = true
  end
end
local suspended = obj.spec.suspend == true
return {
  suspend = { disabled = finished or suspended },
  resume = { disabled = finished or not suspended },
}
