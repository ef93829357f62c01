-- Health of a CompressionJob for Argo CD. A job that runs is healthy: a sync must not wait for hours of training.
-- Progressing: not looked at yet, or no RayJob yet. Suspended, Degraded (failed for good), Healthy: as they say.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function says(kind, otherwise)
  local condition = conditions[kind]
  if condition == nil then
    return otherwise
  end
  if condition.message == nil or condition.message == "" then
    return condition.reason
  end
  return condition.reason .. ": " .. condition.message
end

if holds("Failed") then
  return { status = "Degraded", message = says("Failed") }
end
if holds("Complete") then
  return { status = "Healthy", message = says("Complete") }
end
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the operator has not looked at it yet" }
end
if holds("Suspended") then
  return { status = "Suspended", message = says("Suspended") }
end
if holds("Reconciling") or conditions["Reconciling"] == nil then
  return { status = "Progressing", message = says("Reconciling", "no condition yet") }
end
local progress = status.progress
if progress ~= nil and progress.percent ~= nil then
  return { status = "Healthy", message = "running: " .. (progress.step or "") .. ", " .. progress.percent .. " % of the job" }
end
return { status = "Healthy", message = says("Reconciling") }
